"""The commands for people: `send`, `receive` and the help that lists all.

Only parsing and printing; `client.queue_writer` and `client.queue_reader` do the work.  Exit status: 0 done; 1 not all
could be done (said on stderr); 2 wrong usage; 4 a store that cannot be used; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from trio_rmq import __version__
from trio_rmq.cli.asking import Level, Server, choose_tls, name_servers, run_on_trio, tls_context
from trio_rmq.cli.chaos import chaos_app
from trio_rmq.cli.groups import group_app
from trio_rmq.cli.logs import set_up_logging
from trio_rmq.cli.parts import read_parts, separator_bytes
from trio_rmq.cli.store import store_app
from trio_rmq.cli.topics import topic_app
from trio_rmq.client.compression import plain_body
from trio_rmq.client.queue_reader import QueueReader, Start
from trio_rmq.client.queue_writer import Outgoing, QueueWriter, WriteStatistics
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ConfigError, RocketMQError, StoreError
from trio_rmq.randomness import rng
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.command import SerializeType
from trio_rmq.wire.ids import UniqueIdGenerator

DOUBLES_KEPT = 1_000_000
"""Unique ids that `receive` remembers: far more than a writer has in flight, which is what a retry can double."""

app = typer.Typer(
    name="trio-rmq",
    help="Apache RocketMQ's system on Trio: servers and tools. Name servers are taken from NAMESRV_ADDR.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(topic_app)
app.add_typer(chaos_app)
app.add_typer(group_app)
app.add_typer(store_app)
_ELSEWHERE = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
"""The servers parse their own words; here they only stand in the list."""

Separator = Annotated[str, typer.Option(help=r"what stands between messages; \n \t \0 \xHH are understood")]
Queue = Annotated[int | None, typer.Option(min=0, help="this queue only")]
Broker = Annotated[str | None, typer.Option(help="this broker only, by its name")]
RetryFor = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="how long a server that is away is tried again")
]
LogFile = Annotated[str | None, typer.Option("--log-file", metavar="FILE", help="write the log there, not to stderr")]


def run_app(words: Sequence[str]) -> int:
    """Run one of these commands; returns the exit status."""
    try:
        app(list(words), prog_name="trio-rmq", standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except RocketMQError as error:
        print(f"trio-rmq: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 4 if isinstance(error, StoreError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: the exit must not fail too
        return 1
    return 0


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    tls: Annotated[bool, typer.Option("--tls", help="connect by TLS, trusting the system's authorities")] = False,
    ca: Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="by TLS, trusting those in FILE")] = None,
) -> None:
    if version:
        print(f"trio-rmq {__version__}")
        raise typer.Exit
    choose_tls(tls, ca)


@app.command("standalone", context_settings=_ELSEWHERE)
def _standalone() -> None:
    """Run a name server and a broker in one process."""


@app.command("namesrv", context_settings=_ELSEWHERE)
def _namesrv() -> None:
    """Run a name server."""


@app.command("broker", context_settings=_ELSEWHERE)
def _broker() -> None:
    """Run a broker."""


@app.command("testing", context_settings=_ELSEWHERE)
def _testing() -> None:
    """Serve a broker for the tests of any language, which ends with the program that started it."""


@app.command()
def send(
    topic: Annotated[str, typer.Argument(help="where the messages go")],
    text: Annotated[
        list[str] | None, typer.Argument(help="a message each; none: read --file or standard input")
    ] = None,
    server: Server = "",
    file: Annotated[Path | None, typer.Option(help="read the messages from this file")] = None,
    separator: Separator = r"\n",
    queue: Queue = None,
    broker: Broker = None,
    tag: Annotated[str, typer.Option(help="tag of every message")] = "",
    key: Annotated[str, typer.Option(help="keys of every message, blanks between them")] = "",
    group: Annotated[str, typer.Option(help="producer group")] = "TRIO_RMQ_SEND",
    retry_for: RetryFor = 30,
    log_level: Level = "WARNING",
    log_file: LogFile = None,
) -> None:
    """Send messages: from the command line, a file or standard input, one for each part between separators.

    With --queue they are stored in order, and a server that is killed and started again on the way loses nothing: what
    it had not acknowledged is sent again under the same unique id, by which `receive` drops doubles.
    """
    set_up_logging(log_level, log_file)
    boundary = separator_bytes(separator)
    if file is not None and text:
        raise ConfigError("give messages or --file, not both")
    few = bool(text)

    def stored(messages: Sequence[Outgoing]) -> None:
        if few:
            for message in messages:
                place = f"{message.queue.broker_name} queue {message.queue.queue_id} offset {message.queue_offset}"
                print(f"stored {message.unique_id} in {place}")

    async def run() -> None:
        process = os.getpid()
        ids = UniqueIdGenerator(b"\x7f\0\0\x01", process, rng().getrandbits(31))
        async with RemotingClient(serialize_type=SerializeType.ROCKETMQ, ssl_context=tls_context()) as client:
            writer = QueueWriter(
                client,
                name_servers(server),
                topic,
                next_unique_id=lambda: ids.next_id(wall_ms()),
                wall_ms=wall_ms,
                queue_id=queue,
                broker_name=broker,
                producer_group=group,
                tags=tag,
                keys=key,
                retry_seconds=retry_for,
                on_acknowledged=stored,
            )
            try:
                if text:
                    await writer.write(_words(text))
                else:
                    await _write_file(writer, file, boundary)
            finally:
                if not few:
                    _say_written(writer.statistics)

    run_on_trio(run)


async def _words(text: Sequence[str]) -> AsyncIterator[Sequence[bytes]]:
    yield [os.fsencode(word) for word in text]


async def _write_file(writer: QueueWriter, file: Path | None, separator: bytes) -> None:
    console = Console(stderr=True)
    try:
        source: BinaryIO = sys.stdin.buffer if file is None else file.open("rb")
    except OSError as error:
        raise ConfigError(f"--file {file} cannot be read: {error.strerror}") from None
    with source:
        size = os.fstat(source.fileno()).st_size or None
        columns = (TextColumn("sending"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("sending", total=size)
            await writer.write(
                read_parts(source.fileno(), separator, on_read=lambda count: progress.advance(task, count))
            )


def _say_written(statistics: WriteStatistics) -> None:
    line = f"stored {statistics.messages} messages, {statistics.body_bytes} bytes"
    if statistics.resent:
        line += f"; {statistics.resent} sent again"
    if statistics.out_of_order:
        line += f"; {statistics.out_of_order} may be out of order, as the broker refused messages before them"
    print(line, file=sys.stderr)


@app.command()
def receive(
    topic: Annotated[str, typer.Argument(help="where the messages are")],
    server: Server = "",
    group: Annotated[str, typer.Option(help="consumer group: go on where it stopped, and keep how far it is")] = "",
    queue: Queue = None,
    broker: Broker = None,
    start: Annotated[str, typer.Option("--from", metavar="first|last", help="where to begin")] = "",
    until_end: Annotated[bool, typer.Option("--until-end", help="stop at the end; else wait for more")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="stop after this many messages")] = None,
    separator: Separator = r"\n",
    output: Annotated[Path | None, typer.Option(help="write the bodies to this file")] = None,
    tag: Annotated[str, typer.Option(help="only messages with these tags, `a || b`")] = "*",
    deduplicate: Annotated[bool, typer.Option(help="leave out messages whose unique id came before")] = True,
    retry_for: RetryFor = 30,
    log_level: Level = "WARNING",
    log_file: LogFile = None,
) -> None:
    """Write the bodies of a topic's messages, byte for byte, each followed by the separator."""
    set_up_logging(log_level, log_file)
    boundary = separator_bytes(separator)
    if start not in ("", "first", "last"):
        raise ConfigError(f"--from {start}: the value must be first or last")
    begin: Start = "first" if start == "first" else "last" if start == "last" else "group" if group else "first"
    seen: dict[str, None] = {}

    async def run() -> None:
        written = doubles = 0
        try:
            target: BinaryIO = sys.stdout.buffer if output is None else output.open("wb")
        except OSError as error:
            raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from None
        async with RemotingClient(serialize_type=SerializeType.ROCKETMQ, ssl_context=tls_context()) as client:
            reader = QueueReader(
                client,
                name_servers(server),
                topic,
                group=group or "TRIO_RMQ_RECEIVE",
                queue_id=queue,
                broker_name=broker,
                start=begin,
                until_end=until_end,
                tags=tag,
                retry_seconds=retry_for,
            )
            with target:
                async with reader.open_batches() as batches:
                    async for batch in batches:
                        next_offset = batch.next_offset
                        for message in batch.messages:
                            unique_id = message.unique_key
                            if deduplicate and unique_id is not None:
                                if unique_id in seen:
                                    doubles += 1
                                    continue
                                seen[unique_id] = None
                                if len(seen) > DOUBLES_KEPT:
                                    del seen[next(iter(seen))]
                            target.write(plain_body(message) + boundary)
                            written += 1
                            if written == count:
                                next_offset = message.queue_offset + 1
                                break
                        target.flush()
                        if group:
                            await reader.commit(batch.queue, next_offset)
                        if written == count:
                            break
        line = f"received {written} messages"
        print(f"{line}; {doubles} doubles left out" if doubles else line, file=sys.stderr)

    run_on_trio(run)
