"""The name servers of one client or broker: a list that was given, or one that an address server tells.

An address server is an HTTP server that answers `http://host:8080/rocketmq/nsaddr` with a line of addresses, `;`
between them; RocketMQ's clients ask it (TopAddressing) when they are given no name server.  Invariants: one question
is under way at a time; a list that cannot be fetched, or read, leaves the old one as it is, which is said once, and
once more when it is over.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import anyio

from trio_rmq.errors import ConfigError, RemotingError
from trio_rmq.remoting.address import parse_address
from trio_rmq.remoting.http_get import http_get, parse_http_url

logger = logging.getLogger("trio_rmq.remoting")

REFRESH_SECONDS = 120.0
"""Age at which a list is fetched anew (RocketMQ: every 2 minutes)."""
FETCH_SECONDS = 3.0
"""Deadline of one fetch (TopAddressing.fetchNSAddr)."""
NAME_SERVERS_MAX = 64
"""Most name servers of one list: each may be asked in turn, and a broker registers at each."""
TEXT_SIZE_MAX_BYTES = 64 * 1024
"""Longest answer of an address server."""


def is_address_server(text: str) -> bool:
    """Whether `text`, given as a name server, is meant as an address server's URL."""
    return text.strip().lower().startswith("http://")


class NameServerList:
    """Name servers as `given`: addresses, or one URL of an address server; ConfigError for both or a bad URL.

    `addresses` is what is known now: of an address server that was not asked yet, nothing.
    """

    def __init__(self, given: Sequence[str]) -> None:
        self.addresses: tuple[str, ...] = tuple(given)
        self._url: str | None = None
        if any(map(is_address_server, given)):
            if len(given) > 1:
                raise ConfigError(f"an address server stands alone, not beside others: {'; '.join(given)}")
            self._url = given[0].strip()
            self.addresses = ()
            try:
                parse_http_url(self._url)
            except ConfigError as error:
                raise ConfigError(
                    f"{error}: an address server's is like http://host:8080/rocketmq/nsaddr; a name server is host:port"
                ) from None
        self._due_at = -math.inf
        self._failure: str | None = None
        self._said = False
        self._under_way: anyio.Event | None = None

    def __str__(self) -> str:
        return ", ".join(self.addresses) or str(self._url)

    @property
    def is_fetched(self) -> bool:
        """Whether an address server tells it, so that it may change."""
        return self._url is not None

    async def current(self, *, may_refresh: bool = True) -> tuple[str, ...]:
        """The name servers, at least one: fetched first when none is known or, with `may_refresh`, when it is time.

        RemotingError when none is known and none can be fetched.
        """
        if self._url is None:
            return self.addresses
        if may_refresh and self.addresses:
            await self.refresh_if_due()
        while not self.addresses:
            await self.refresh()
            if self._failure is not None and not self.addresses:
                raise RemotingError(f"no name server is known: {self._failure}", address=self._url)
        return self.addresses

    async def refresh_if_due(self) -> None:
        """Fetch a list that is older than REFRESH_SECONDS; a failure is logged only."""
        if self._url is not None and anyio.current_time() >= self._due_at:
            await self.refresh()

    async def refresh(self) -> None:
        """Fetch the list now, or wait for who is at it; a failure is logged only."""
        if self._url is None:
            return
        if self._under_way is not None:
            await self._under_way.wait()
            return
        done = self._under_way = anyio.Event()
        try:
            self._failure = None
            body = await http_get(self._url, timeout_seconds=FETCH_SECONDS, body_size_max_bytes=TEXT_SIZE_MAX_BYTES)
            self._take(parse_list(body.decode("utf-8", "replace")))
        except (RemotingError, ConfigError) as error:
            self._fail(str(error))
        finally:
            self._due_at = anyio.current_time() + REFRESH_SECONDS
            self._under_way = None
            done.set()

    def _take(self, addresses: tuple[str, ...]) -> None:
        if self._said:
            self._said = False
            logger.warning("the address server %s answers again", self._url)
        if addresses != self.addresses:
            logger.info("the address server %s names the name servers %s", self._url, ", ".join(addresses))
        self.addresses = addresses

    def _fail(self, reason: str) -> None:
        self._failure = reason
        if not self._said:
            self._said = True
            kept = f"going on with {', '.join(self.addresses)}" if self.addresses else "no name server is known yet"
            logger.warning("no name servers from %s: %s; %s", self._url, reason, kept)


def parse_list(text: str) -> tuple[str, ...]:
    """The addresses in the first line of an address server's answer; ConfigError when there are none, or bad ones."""
    line = (text.strip().splitlines() or [""])[0]
    addresses = tuple(dict.fromkeys(part.strip() for part in line.split(";") if part.strip()))
    if not addresses:
        raise ConfigError("the answer names no name server")
    if len(addresses) > NAME_SERVERS_MAX:
        raise ConfigError(f"the answer names {len(addresses)} name servers, more than {NAME_SERVERS_MAX}")
    for address in addresses:
        parse_address(address)
    return addresses
