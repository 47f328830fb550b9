"""Reads what the servers hold when all has come to rest: every message of every topic, and how far the groups are."""

from __future__ import annotations

from collections.abc import Sequence

from trio_rmq.client import MessageQueue, PullConsumer
from trio_rmq.config import MessageStoreConfig
from trio_rmq.errors import RocketMQError
from trio_rmq.store.disk import Disk
from trio_rmq.store.offline.verify import verify_store
from trio_rmq.testing.chaos.cluster import Cluster
from trio_rmq.testing.chaos.judge import Observation, Progress
from trio_rmq.testing.chaos.workloads.clients import Clients, name_in, queue_name
from trio_rmq.testing.simulation.checkers import Problem, Queue, Stored


async def group_progress(cluster: Cluster, clients: Clients) -> list[Progress]:
    """Where the workload's group stands in each queue; RocketMQError when a broker cannot say."""
    async with PullConsumer(clients.group, name_servers=cluster.name_servers) as asking:
        return [
            Progress(clients.group, queue_name(queue), await asking.committed(queue), await asking.max_offset(queue))
            for queue in clients.queues
        ]


async def observe(cluster: Cluster, everybody: Sequence[Clients], *, converged: bool) -> Observation:
    """All that is stored and committed; what cannot be read is a problem, no error."""
    stored: list[Stored] = []
    begins: dict[Queue, int] = {}
    progress: list[Progress] = []
    problems: list[Problem] = []
    for clients in everybody:
        try:
            progress += await group_progress(cluster, clients)
        except RocketMQError as error:
            problems.append(Problem("unreadable", f"the progress of {clients.group} cannot be read: {error}"))
        async with PullConsumer("chaos-observer", name_servers=cluster.name_servers) as reader:
            for queue in clients.queues:
                try:
                    begins[queue_name(queue)] = await reader.min_offset(queue)
                    stored += await _read(reader, queue, problems)
                except RocketMQError as error:
                    problems.append(Problem("unreadable", f"{queue_name(queue)} cannot be read: {error}"))
    return Observation(stored, begins, progress, problems, converged)


async def _read(reader: PullConsumer, queue: MessageQueue, problems: list[Problem]) -> list[Stored]:
    """All messages of the queue, in order."""
    found: list[Stored] = []
    offset, end = await reader.min_offset(queue), await reader.max_offset(queue)
    while offset < end:
        result = await reader.pull(queue, offset)
        found += [Stored(queue_name(queue), message.queue_offset, name_in(message.body)) for message in result.messages]
        if result.next_offset <= offset:
            problems.append(Problem("unreadable", f"{queue_name(queue)} offset {offset}: {result.status.name}"))
            break
        offset = result.next_offset
    return found


def verify_files(cluster: Cluster) -> list[Problem]:
    """What `store verify` finds damaged in the brokers' folders; they must have been stopped."""
    problems: list[Problem] = []
    for node in cluster.brokers:
        settings = node.place.settings
        config = MessageStoreConfig(
            store_path_root_dir=node.place.store,
            mapped_file_size_commit_log=int(settings["mappedFileSizeCommitLog"]),
            mapped_file_size_consume_queue=int(settings["mappedFileSizeConsumeQueue"]),
            max_index_num=int(settings["maxIndexNum"]),
            max_hash_slot_num=int(settings["maxHashSlotNum"]),
            message_delay_level=settings["messageDelayLevel"],
        )
        try:
            verified = verify_store(config, disk=Disk())
        except RocketMQError as error:
            problems.append(Problem("corrupt", f"the store of {node.name} cannot be read: {error}"))
            continue
        if verified.damages:
            damages = [finding.sentence() for finding in verified.findings if finding.damage]
            problems += [Problem("damaged", f"{node.name}: {sentence}") for sentence in damages]
    return problems
