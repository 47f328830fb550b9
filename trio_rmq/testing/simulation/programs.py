"""The servers that run on the machines of a simulation: the production ones, and what they are told."""

from __future__ import annotations

from random import Random

import trio

from trio_rmq.broker.server import serve_broker
from trio_rmq.config import BrokerConfig, MessageStoreConfig, NamesrvConfig
from trio_rmq.namesrv.server import serve_name_server
from trio_rmq.testing.simulation.machine import Machine
from trio_rmq.testing.simulation.plan import DELAYS_MS, Options
from trio_rmq.testing.stores import small_config

BROKER_NAME, ROOT = "broker-a", "store"
NAME_SERVER, BROKER = "10.0.0.1", "10.0.0.2"
NAME_SERVERS = f"{NAME_SERVER}:9876"
QUEUE_FILE_BYTES = 2000
TRANSACTION_MS = 3000
"""How old an undecided transaction is when its producers are asked, and after how long they are asked again."""


def store_config(options: Options) -> MessageStoreConfig:
    """The broker's store: small files, and intervals so short that each background service has its turns."""
    return small_config(
        ROOT,
        flush_disk_type=options.flush_disk_type,
        mapped_file_size_commit_log=options.log_file_bytes,
        mapped_file_size_consume_queue=QUEUE_FILE_BYTES,
        flush_commit_log_thorough_interval=1000,
        flush_consume_queue_thorough_interval=3000,
        message_delay_level=" ".join(f"{delay_ms // 1000}s" for delay_ms in DELAYS_MS),
    )


async def run_name_server(machine: Machine, task_status: trio.TaskStatus[None]) -> None:
    """The name server, until cancelled."""
    async with trio.open_nursery() as nursery:
        config = NamesrvConfig(kv_config_path="kv.json")

        async def serve(*, task_status: trio.TaskStatus[object]) -> None:
            await serve_name_server(config, disk=machine.disk, task_status=task_status)

        await nursery.start(serve)
        task_status.started()


class BrokerProgram:
    """The broker, on a disk whose syncs take the time the plan says."""

    def __init__(self, options: Options, disk_rng: Random) -> None:
        self._options = options
        self._rng = disk_rng
        self.slow = False
        """Whether syncs have a heavy tail."""
        self.worst_sync_seconds = 0.0

    def sync_seconds(self) -> float:
        """What the next sync takes."""
        seconds = self._rng.expovariate(1 / self._options.sync_seconds)
        if self.slow:
            seconds += min(0.05 * self._rng.paretovariate(0.7), 6.0)
        self.worst_sync_seconds = max(self.worst_sync_seconds, seconds)
        return seconds

    async def run(self, machine: Machine, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled, or until the store fails."""
        machine.disk.latency = self.sync_seconds
        config = BrokerConfig(
            broker_ip1=BROKER,
            broker_name=BROKER_NAME,
            namesrv_addr=NAME_SERVERS,
            fast_port_enable=False,
            transaction_time_out=TRANSACTION_MS,
            transaction_check_interval=TRANSACTION_MS,
        )

        async def serve(*, task_status: trio.TaskStatus[object]) -> None:
            await serve_broker(config, store_config(self._options), disk=machine.disk, task_status=task_status)

        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            task_status.started()
