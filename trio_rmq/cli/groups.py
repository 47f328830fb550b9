"""`trio-rmq group list`, `show`, `lag` and `reset`: consumer groups over all brokers.

Only parsing and printing; `admin.groups` does the work.  Exit status: 0 done; 1 not done (said on
stderr); 2 wrong usage.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from trio_rmq.cli.asking import Level, Server, admin_client, run_on_trio
from trio_rmq.cli.logs import set_up_logging
from trio_rmq.cli.tables import joined, print_table, time_text
from trio_rmq.errors import ConfigError

if TYPE_CHECKING:
    from trio_rmq.admin.groups import Group, QueueProgress
    from trio_rmq.wire.groups import SubscriptionGroupConfig

group_app = typer.Typer(
    name="group",
    help="See consumer groups, how far they are, and put them elsewhere.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="GROUP", help="the consumer group")]
Cluster = Annotated[str | None, typer.Option(help="of this cluster only")]


@group_app.command("list")
def list_(server: Server = "", cluster: Cluster = None, log_level: Level = "WARNING") -> None:
    """List every group with its settings."""
    from trio_rmq.admin.groups import list_groups

    set_up_logging(log_level, None)

    async def run() -> None:
        async with admin_client(server) as admin:
            groups = await list_groups(admin, cluster=cluster)
        rows = [(name, _brokers(configs), *_settings(configs)) for name, configs in groups.items()]
        print_table(("GROUP", "BROKERS", "CONSUME", "BROADCAST", "RETRIES"), rows)

    run_on_trio(run)


@group_app.command()
def show(name: Name, server: Server = "", cluster: Cluster = None, log_level: Level = "WARNING") -> None:
    """Show a group: its members, what they subscribe to, and what is wrong with it."""
    from trio_rmq.admin.groups import group_progress, show_group

    set_up_logging(log_level, None)

    async def run() -> None:
        async with admin_client(server) as admin:
            group = await show_group(admin, name, cluster=cluster)
            progress = await group_progress(admin, name, cluster=cluster)
        _print_group(group, sum(one.lag for one in progress))

    run_on_trio(run)


@group_app.command()
def lag(
    name: Name,
    server: Server = "",
    topic: Annotated[str | None, typer.Option(help="in this topic only")] = None,
    cluster: Cluster = None,
    log_level: Level = "WARNING",
) -> None:
    """Show how far a group is in each queue."""
    from trio_rmq.admin.groups import group_progress

    set_up_logging(log_level, None)

    async def run() -> None:
        async with admin_client(server) as admin:
            progress = await group_progress(admin, name, topic=topic, cluster=cluster)
        print_table(
            ("TOPIC", "BROKER", "QUEUE", "END", "CONSUMED", "LAG", "LAST CONSUMED"), map(_progress_row, progress)
        )
        print(f"total lag {sum(one.lag for one in progress)}")

    run_on_trio(run)


@group_app.command()
def reset(
    name: Name,
    topic: Annotated[str, typer.Argument(help="in this topic")],
    to: Annotated[str, typer.Option(metavar="first|last|TIME", help="TIME: 2026-11-29T07:00:00, or ms since 1970")],
    only_back: Annotated[bool, typer.Option("--only-back", help="leave queues that would go forward")] = False,
    server: Server = "",
    log_level: Level = "WARNING",
) -> None:
    """Have a group go on elsewhere: at the first message, the end, or the first message not before a time."""
    from trio_rmq.admin.groups import reset_group

    set_up_logging(log_level, None)
    timestamp_ms = _time_of(to)

    async def run() -> None:
        async with admin_client(server) as admin:
            offsets = await reset_group(admin, name, topic, timestamp_ms, force=not only_back)
        rows = [(queue.topic, queue.broker_name, queue.queue_id, offset) for queue, offset in offsets.items()]
        print_table(("TOPIC", "BROKER", "QUEUE", "GOES ON AT"), rows)

    run_on_trio(run)


def _time_of(text: str) -> int:
    """Milliseconds since 1970; a time without a zone is this machine's."""
    from trio_rmq.admin.groups import END

    if text == "first":
        return 0
    if text == "last":
        return END
    if text.isascii() and text.isdigit() and len(text) <= 15:
        return int(text)
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ConfigError(f"--to {text}: the value must be first, last, a time or milliseconds since 1970") from None


def _print_group(group: Group, lag_total: int) -> None:
    print(f"group          {group.name}")
    if group.configs:
        consume, broadcast, retries = _settings(group.configs)
        print(f"brokers        {_brokers(group.configs)}")
        print(f"settings       consume {consume}, broadcast {broadcast}, retries {retries}")
    print(f"lag            {lag_total}")
    if not group.members:
        print("members        none: the group is offline")
    else:
        print(f"consumes       {group.message_model}, {group.consume_type}, {group.consume_from_where}")
        for member in sorted(group.members.values(), key=lambda one: one.client_id):
            print(f"member         {member.client_id} at {member.address} ({member.language} {member.version})")
        for topic, data in sorted(group.subscriptions.items()):
            print(f"subscription   {topic} {data.expression_type} {data.sub_string!r}")
    for problem in group.problems:
        print(f"PROBLEM        {problem}")


def _brokers(configs: dict[str, SubscriptionGroupConfig]) -> str:
    return ",".join(sorted(configs))


def _settings(configs: dict[str, SubscriptionGroupConfig]) -> tuple[str, str, str]:
    """Whether it may consume, whether it may broadcast, how often it retries; both values where brokers differ."""
    return (
        joined("yes" if config.consume_enable else "NO" for config in configs.values()),
        joined("yes" if config.consume_broadcast_enable else "NO" for config in configs.values()),
        joined(str(config.retry_max_times) for config in configs.values()),
    )


def _progress_row(one: QueueProgress) -> tuple[object, ...]:
    queue, when = one.queue, time_text(one.last_consumed_ms)
    return queue.topic, queue.broker_name, queue.queue_id, one.broker_offset, one.consumer_offset, one.lag, when
