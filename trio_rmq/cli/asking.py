"""What commands that ask servers share: which name servers, and running to the end on Trio."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import anyio
import typer

from trio_rmq.cli.host import default_name_servers

LOCAL_NAME_SERVER = "127.0.0.1:9876"

Server = Annotated[
    str, typer.Option("-n", "--server", metavar="ADDRS", help="name servers, host:port or ws://host:port")
]
Level = Annotated[str, typer.Option("--log-level", help="DEBUG, INFO, WARNING or ERROR")]


def name_servers(server: str) -> list[str]:
    """The name servers of the option, else NAMESRV_ADDR's, else this machine's."""
    text = server or default_name_servers() or LOCAL_NAME_SERVER
    return [part for part in text.replace(",", ";").split(";") if part.strip()]


def run_on_trio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main` on Trio; a single error comes out of the groups it was wrapped in."""
    try:
        anyio.run(main, backend="trio")
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
