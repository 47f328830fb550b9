"""What commands that ask servers share: which name servers, TLS or not, and running to the end on Trio."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from trio_rmq.cli.host import default_name_servers
from trio_rmq.remoting.tls_context import TlsContext, trusting_context, verifying_context

if TYPE_CHECKING:
    from trio_rmq.admin.client import AdminClient

LOCAL_NAME_SERVER = "127.0.0.1:9876"

Server = Annotated[
    str, typer.Option("-n", "--server", metavar="ADDRS", help="name servers, host:port or ws://host:port")
]
Level = Annotated[str, typer.Option("--log-level", help="DEBUG, INFO, WARNING or ERROR")]


def name_servers(server: str) -> list[str]:
    """The name servers of the option, else NAMESRV_ADDR's, else this machine's."""
    text = server or default_name_servers() or LOCAL_NAME_SERVER
    return [part for part in text.replace(",", ";").split(";") if part.strip()]


_context: ContextVar[TlsContext | None] = ContextVar("trio_rmq_cli_tls", default=None)


def choose_tls(tls: bool, ca: Path | None) -> None:
    """Have this command connect as `trio-rmq --tls` and `--ca` ask; ConfigError when the file cannot be used."""
    _context.set(trusting_context(str(ca)) if ca is not None else verifying_context(None, use_tls=tls))


def tls_context() -> TlsContext | None:
    """The context of all the command's connections; None: none is TLS but those to `wss://`."""
    return _context.get()


def admin_client(server: str) -> AdminClient:
    """For the command's admin calls, at the name servers of its option."""
    from trio_rmq.admin.client import AdminClient

    return AdminClient(name_servers=name_servers(server), ssl_context=tls_context())


def run_on_trio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main` on Trio; a single error comes out of the groups it was wrapped in."""
    try:
        anyio.run(main, backend="trio")
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
