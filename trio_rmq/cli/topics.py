"""`trio-rmq topic list`, `create`, `show` and `delete`: topics over all brokers.

Only parsing and printing; `admin.topics` does the work.  Exit status: 0 done; 1 not done (said on stderr); 2 wrong
usage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trio_rmq.cli.asking import Level, Server, admin_client, run_on_trio
from trio_rmq.cli.logs import set_up_logging
from trio_rmq.cli.tables import joined, print_table, time_text
from trio_rmq.errors import ConfigError
from trio_rmq.wire.sysflag import PERMISSION_READ, PERMISSION_WRITE

if TYPE_CHECKING:
    from trio_rmq.wire.topics import TopicConfig

topic_app = typer.Typer(
    name="topic",
    help="See topics and where they are, make and delete them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="TOPIC", help="the topic")]
Cluster = Annotated[str | None, typer.Option(help="of this cluster only")]
_PERMISSIONS = {"rw": PERMISSION_READ | PERMISSION_WRITE, "r": PERMISSION_READ, "w": PERMISSION_WRITE, "none": 0}


@topic_app.command("list")
def list_(
    server: Server = "",
    cluster: Cluster = None,
    everything: Annotated[bool, typer.Option("--all", help="also the system's, retries and dead letters")] = False,
    log_level: Level = "WARNING",
) -> None:
    """List every topic with its settings."""
    from trio_rmq.admin.topics import list_topics

    set_up_logging(log_level, None)

    async def run() -> None:
        async with admin_client(server) as admin:
            topics = await list_topics(admin, cluster=cluster, everything=everything)
        rows = [(name, ",".join(sorted(configs)), *_settings(configs)) for name, configs in topics.items()]
        print_table(("TOPIC", "BROKERS", "WRITE", "READ", "PERMISSION"), rows)

    run_on_trio(run)


@topic_app.command()
def create(
    name: Name,
    server: Server = "",
    queues: Annotated[int, typer.Option(min=1, help="queues at each broker")] = 8,
    read_queues: Annotated[int | None, typer.Option(min=1, help="queues to read, if not as many as to write")] = None,
    permission: Annotated[str, typer.Option(metavar="rw|r|w|none", help="what clients may do")] = "rw",
    cluster: Cluster = None,
    broker: Annotated[str | None, typer.Option(help="at this broker only, by its name")] = None,
    log_level: Level = "WARNING",
) -> None:
    """Make a topic at every broker, or change it."""
    from trio_rmq.admin.topics import create_topic

    set_up_logging(log_level, None)
    if permission not in _PERMISSIONS:
        raise ConfigError(f"--permission {permission}: the value must be rw, r, w or none")

    async def run() -> None:
        async with admin_client(server) as admin:
            brokers = await create_topic(
                admin, name, write_queues=queues, read_queues=read_queues, permission=_PERMISSIONS[permission],
                cluster=cluster, broker_name=broker,
            )  # fmt: skip
        print(f"{name} is at {', '.join(brokers)}")

    run_on_trio(run)


@topic_app.command()
def show(name: Name, server: Server = "", cluster: Cluster = None, log_level: Level = "WARNING") -> None:
    """Show a topic: its settings, the groups that consume it, and each queue's offsets."""
    from trio_rmq.admin.topics import show_topic

    set_up_logging(log_level, None)

    async def run() -> None:
        async with admin_client(server) as admin:
            topic = await show_topic(admin, name, cluster=cluster)
        write, read, permission = _settings(topic.configs)
        print(f"topic          {topic.name}")
        print(f"brokers        {','.join(sorted(topic.configs))}")
        print(f"settings       {write} queues to write, {read} to read, permission {permission}")
        print(f"groups         {', '.join(topic.groups) or 'none'}")
        rows = [
            (one.queue.broker_name, one.queue.queue_id, one.min_offset, one.max_offset, time_text(one.last_stored_ms))
            for one in topic.queues
        ]
        print_table(("BROKER", "QUEUE", "FIRST", "END", "LAST STORED"), rows)
        print(f"messages       {sum(one.max_offset - one.min_offset for one in topic.queues)}")

    run_on_trio(run)


@topic_app.command()
def delete(name: Name, server: Server = "", cluster: Cluster = None, log_level: Level = "WARNING") -> None:
    """Delete a topic with its messages."""
    from trio_rmq.admin.topics import delete_topic

    set_up_logging(log_level, None)

    async def run() -> None:
        async with admin_client(server) as admin:
            brokers = await delete_topic(admin, name, cluster=cluster)
        print(f"{name} was deleted at {', '.join(brokers)}")

    run_on_trio(run)


def _settings(configs: dict[str, TopicConfig]) -> tuple[str, str, str]:
    """Queues to write and to read, and what clients may do; all values where brokers differ."""
    return (
        joined(str(config.write_queue_nums) for config in configs.values()),
        joined(str(config.read_queue_nums) for config in configs.values()),
        joined(_permission(config.perm) for config in configs.values()),
    )


def _permission(bits: int) -> str:
    return "".join(word for word, bit in (("r", PERMISSION_READ), ("w", PERMISSION_WRITE)) if bits & bit) or "none"
