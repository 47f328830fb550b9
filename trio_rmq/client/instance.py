"""What every producer and consumer has: its name, its name servers, and who it is to brokers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from trio_rmq.errors import ClientError, ConfigError
from trio_rmq.randomness import rng
from trio_rmq.remoting.name_server_list import NameServerList

DEFAULT_HOST = b"\x7f\x00\x00\x01"
GROUP_LENGTH_MAX = 255
_GROUP = re.compile(r"[%|a-zA-Z0-9_-]+")


def name_server_list(given: str | Sequence[str] | None) -> NameServerList:
    """The name servers to use: those given (`a;b` or a sequence), else the environment's NAMESRV_ADDR.

    Also an address server's URL.  ClientError when there is none, or no such URL.
    """
    if given is None:
        given = os.environ.get("NAMESRV_ADDR", "")
    parts = given.split(";") if isinstance(given, str) else list(given)
    addresses = [part.strip() for part in parts if part.strip()]
    if not addresses:
        raise ClientError("no name server is given: pass name_servers='host:9876' or set NAMESRV_ADDR")
    try:
        return NameServerList(addresses)
    except ConfigError as error:
        raise ClientError(str(error)) from None


def new_client_id() -> str:
    """A client id that no other client has: address, process, and a random part, as `ip@instance`."""
    return f"127.0.0.1@{os.getpid()}#{rng().getrandbits(48):012x}"


def process_id() -> int:
    """This process's number, a part of unique message ids."""
    return os.getpid()


def check_group(group: str) -> None:
    """ClientError for a name that brokers refuse as a consumer group's.  Source: RocketMQ Validators.checkGroup."""
    if not _GROUP.fullmatch(group) or len(group) > GROUP_LENGTH_MAX:
        raise ClientError(
            f"the group {group!r} must have 1 to {GROUP_LENGTH_MAX} characters of a-z, A-Z, 0-9, %, |, - and _"
        )
    if group == "DEFAULT_CONSUMER":
        raise ClientError("the group DEFAULT_CONSUMER is everybody's: choose a name of your own")
