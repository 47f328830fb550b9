"""What whoever embeds a server may put around its handlers: RocketMQ's RPCHook, given once instead of registered.

Hooks see what the server's own handlers see: decoded commands and their sessions, in the order of one connection.  They
are chosen before the server starts and never change, so that a server without them pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.session import SessionCallback


def _as_they_are(handlers: HandlerTable) -> HandlerTable:
    return handlers


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerHooks:
    """`wrap` gets the server's complete table and returns the one that is served; `on_open` is told each session.

    `on_open` is called before the session's first request, without waiting, and may close it: then what came with its
    first read is still handled, and nothing is answered.
    """

    wrap: Callable[[HandlerTable], HandlerTable] = _as_they_are
    on_open: SessionCallback | None = None


NO_HOOKS = ServerHooks()
