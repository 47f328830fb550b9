"""`trio-rmq store inspect`, `verify`, `dump` and `rebuild`: looks at a store folder without a broker.

Only parsing and printing; `store.offline` does the work.  Exit status: 0 done; 1 verify found damage; 2 wrong usage;
4 the store cannot be read, is in use, or has no such message (said on stderr).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from trio_rmq.cli.logs import set_up_logging
from trio_rmq.config import load_broker_settings
from trio_rmq.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from trio_rmq.config import MessageStoreConfig
    from trio_rmq.store.offline.inspect import Inspected
    from trio_rmq.store.offline.rebuild import Rebuilt
    from trio_rmq.store.offline.verify import Verified

FINDINGS_SHOWN = 50
"""Findings that verify prints for a person; --json has all that were kept."""

store_app = typer.Typer(
    name="store",
    help="Look into a store folder without a broker, prove it, print from it, make its queues and index anew.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[str, typer.Argument(metavar="DIR", help="the store folder (storePathRootDir)")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="settings of the broker that made it"),
]
ConfigFile = Annotated[str | None, typer.Option("-c", "--config", metavar="FILE", help="the broker's settings")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Topic = Annotated[str, typer.Option(help="of this topic")]


@store_app.command()
def inspect(folder: Folder, settings: Settings = None, config: ConfigFile = None, json: AsJson = False) -> None:
    """Tell what a store holds: ranges, topics and queues, times, files, checkpoint. Safe on a store in use."""
    from trio_rmq.store.disk import ReadOnlyDisk
    from trio_rmq.store.offline.folder import StoreFolder
    from trio_rmq.store.offline.inspect import inspect_store

    with _reporting() as progress:
        opened = StoreFolder(ReadOnlyDisk(), _store_config(folder, settings, config))
        found = inspect_store(opened, progress)
        opened.close()
    _print_json(found) if json else _print_inspected(found)


@store_app.command()
def verify(folder: Folder, settings: Settings = None, config: ConfigFile = None, json: AsJson = False) -> None:
    """Read a whole store and compare everything in it; name every damage. No broker may use it meanwhile."""
    from trio_rmq.store.disk import ReadOnlyDisk
    from trio_rmq.store.offline.verify import verify_store

    with _reporting() as progress:
        done = verify_store(_store_config(folder, settings, config), disk=ReadOnlyDisk(), progress=progress)
    _print_json(done) if json else _print_verified(done)
    if not done.whole:
        raise typer.Exit(1)


@store_app.command()
def dump(
    folder: Folder,
    settings: Settings = None,
    config: ConfigFile = None,
    at: Annotated[int | None, typer.Option(min=0, metavar="OFFSET", help="the record at this physical offset")] = None,
    message_id: Annotated[str, typer.Option("--id", help="the record with this offset message id")] = "",
    topic: Topic = "",
    queue: Annotated[int | None, typer.Option(min=0, help="with --topic and --offset: of this queue")] = None,
    offset: Annotated[int | None, typer.Option(min=0, help="the message with this offset in its queue")] = None,
    key: Annotated[str, typer.Option(help="with --topic: messages with this key or unique key, the newest first")] = "",
    count: Annotated[int, typer.Option(min=1, metavar="N", help="so many from there on")] = 1,
    everything: Annotated[bool, typer.Option("--all", help="all from there on; alone: the whole log")] = False,
) -> None:
    """Print messages as JSON, one on a line: one, or a range from one on. Safe on a store in use."""
    from trio_rmq.store.disk import ReadOnlyDisk
    from trio_rmq.store.offline.dump import Dump, as_json
    from trio_rmq.store.offline.folder import StoreFolder

    most = None if everything else count
    if [at is not None, bool(message_id), offset is not None, bool(key)].count(True) > 1:
        raise ConfigError("give one of --at, --id, --offset and --key")
    if (offset is not None and (not topic or queue is None)) or (key and not topic):
        raise ConfigError("--offset needs --topic and --queue, and --key needs --topic")
    if at is None and not message_id and offset is None and not key and not everything:
        raise ConfigError("say which message: --at, --id, --topic with --queue and --offset or with --key, or --all")
    with _reporting() as progress:
        opened = StoreFolder(ReadOnlyDisk(), _store_config(folder, settings, config))
        records = Dump(opened, progress)
        lines: Iterator[bytes]
        if message_id:
            lines = iter([as_json(records.by_id(message_id))])
        elif key:
            lines = records.by_key(topic, key, most)
        elif offset is not None and queue is not None:
            lines = records.in_queue(topic, queue, offset, most)
        elif at is not None and most == 1:
            lines = iter([as_json(records.at(at))])
        else:
            lines = records.in_log(at or 0, most)
        for line in lines:
            sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
        opened.close()


@store_app.command()
def rebuild(folder: Folder, settings: Settings = None, config: ConfigFile = None, json: AsJson = False) -> None:
    """Make consume queues and index anew from the log. No broker may use the store; a damaged log is left alone."""
    import trio

    from trio_rmq.store.disk import Disk
    from trio_rmq.store.offline.rebuild import rebuild_store

    set_up_logging("WARNING", None)
    with _reporting() as progress:
        store_config = _store_config(folder, settings, config)

        async def run() -> Rebuilt:
            return await rebuild_store(store_config, disk=Disk(), progress=progress)

        done = trio.run(run)
    if json:
        _print_json(done)
        return
    print(f"{done.root}: the log ends at {done.end_offset}")
    print(f"  {done.queues} queues made anew with {done.entries} entries of {done.records} records")
    if done.kept_queues:
        print(f"  {len(done.kept_queues)} queues kept: the log holds no message of theirs any more")
    if done.unit_files:
        print(f"  {done.unit_files} extension files: what was made anew has no bit maps")
    print(f"  {done.index_files} index files made anew with {done.index_keys} keys")


def _store_config(folder: str, settings: list[str] | None, config: str | None) -> MessageStoreConfig:
    return load_broker_settings(config, [*(settings or ()), f"storePathRootDir={folder.rstrip('/') or '/'}"]).store


@contextmanager
def _reporting() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal's stderr; an OSError becomes a sentence."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            task = tasks.get(what)
            if task is None:
                task = tasks[what] = bar.add_task(what, total=total)
            bar.update(task, completed=done, total=total)  # type: ignore[arg-type]  # rich's TaskID is an int

        try:
            yield report
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise StoreError(f"{error.filename or 'the store'} cannot be used: {error.strerror or error}") from error


def _print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def _time(time_ms: int) -> str:
    """Local time to the millisecond; a dash for none."""
    if time_ms <= 0:
        return "-"
    return datetime.fromtimestamp(time_ms / 1000).isoformat(" ", "milliseconds")


def _print_inspected(found: Inspected) -> None:
    state = "stopped in order" if found.clean_stop else "not stopped in order: the next start recovers it"
    if found.in_use:
        state = "in use by a broker: what it wrote in the last moments may be missing here"
    mark = "" if found.mark is None else f", mark at {found.mark}"
    print(f"{found.root}: {state}")
    print(
        f"  log        {found.min_offset} to {found.end_offset}, {found.log_files} files of {found.log_file_size} bytes"
    )
    print(f"             {_time(found.first_time_ms)} to {_time(found.last_time_ms)}")
    print(
        f"  queues     {len(found.queues)}, {found.messages} messages, {found.queue_files} files of "
        f"{found.queue_file_size} bytes" + (f", {found.unit_files} extension files" if found.unit_files else "")
    )
    print(
        f"  checkpoint log {_time(found.checkpoint_log_ms)}, queues {_time(found.checkpoint_queues_ms)}, "
        f"index {_time(found.checkpoint_index_ms)}{mark}"
    )
    for topic, at in sorted(found.deleted_topics.items()):
        print(f"  deleted    {topic}: its messages before {at} do not count")
    unreadable = [name for name, is_readable in found.metadata.items() if not is_readable]
    print(
        f"  config     {len(found.metadata)} files" + (f", unreadable: {', '.join(unreadable)}" if unreadable else "")
    )
    console = Console(width=None if sys.stdout.isatty() else 160)
    if found.queues:
        table = Table(
            "topic", "queue", "first offset", "next offset", "messages", "first stored", "last stored", box=None
        )
        for queue in found.queues:
            table.add_row(
                queue.topic, str(queue.queue_id), str(queue.min_offset), str(queue.max_offset), str(queue.messages),
                _time(queue.first_time_ms), _time(queue.last_time_ms),
            )  # fmt: skip
        console.print(table)
    if found.index:
        table = Table("index file", "keys", "room for", "first stored", "last stored", "from", "to", box=None)
        for file in found.index:
            table.add_row(
                file.name, str(file.keys), str(file.room), _time(file.begin_ms), _time(file.end_ms),
                str(file.begin_physical), str(file.end_physical),
            )  # fmt: skip
        console.print(table)
    for finding in found.findings:
        print(("damage: " if finding.damage else "note: ") + finding.sentence())


def _print_verified(done: Verified) -> None:
    print(f"{done.root}: {'stopped in order' if done.clean_stop else 'not stopped in order'}")
    print(
        f"  log     {done.min_offset} to {done.end_offset}: {done.records} records of {done.record_bytes} bytes, "
        f"{done.fillers} fillers, {done.damaged_bytes} bytes damaged"
    )
    print(f"          {_time(done.first_time_ms)} to {_time(done.last_time_ms)}")
    print(f"  queues  {done.queues}: {done.queue_records} entries are those of their records")
    if done.unwritten_entries:
        print(f"          {done.unwritten_entries} entries are still to be made: the next start does it")
    if done.units:
        print(f"          {done.units} of them lead to their units in extension files")
    print(f"  index   {done.index_files} files, {done.index_items} keys")
    for finding in done.findings[:FINDINGS_SHOWN]:
        print(("damage: " if finding.damage else "note: ") + finding.sentence())
    total = done.damages + done.notes
    if total > FINDINGS_SHOWN:
        kinds = ", ".join(f"{kind} {count}" for kind, count in done.by_kind.items())
        print(f"... and {total - FINDINGS_SHOWN} more: {kinds}")
    print("whole" if done.whole else f"DAMAGED in {done.damages} places", end="")
    print(f", {done.notes} notes" if done.notes else "")
