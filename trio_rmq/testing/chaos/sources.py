"""Gives clients of one process different addresses, so that a proxy can tell producers from consumers.

All of 127.0.0.0/8 is this machine on Linux; elsewhere only 127.0.0.1 is, and then clients are all one party.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import trio

PRODUCERS, CONSUMERS, OBSERVER = "127.0.0.2", "127.0.0.3", "127.0.0.4"
PARTIES = {PRODUCERS: "producers", CONSUMERS: "consumers", OBSERVER: "observer"}
"""Source address -> who connects from it."""

_source: ContextVar[str] = ContextVar("trio_rmq_chaos_source", default="")


class _Factory(trio.abc.SocketFactory):
    def socket(self, family: int = -1, type: int = -1, proto: int = -1) -> trio.socket.SocketType:  # noqa: A002 - the hook's own name
        made = socket.socket(family, type, proto)
        if address := _source.get():
            try:
                made.bind((address, 0))
            except BaseException:
                made.close()
                raise
        return trio.socket.from_stdlib_socket(made)


@contextmanager
def telling_sources() -> Iterator[None]:
    """Within the block, in this Trio run, `connecting_from` has an effect."""
    before = trio.socket.set_custom_socket_factory(_Factory())
    try:
        yield
    finally:
        trio.socket.set_custom_socket_factory(before)


@contextmanager
def connecting_from(address: str) -> Iterator[None]:
    """Tasks started in the block connect from this loopback address."""
    token = _source.set(address)
    try:
        yield
    finally:
        _source.reset(token)
