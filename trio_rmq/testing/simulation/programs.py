"""The programs that run on the machines of a simulation: the production servers and clients, and what they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import anyio
import trio

from trio_rmq.broker.server import serve_broker
from trio_rmq.client.message import Message, ReceivedMessage, SendStatus
from trio_rmq.client.producer import Producer
from trio_rmq.client.push_consumer import PushConsumer
from trio_rmq.config import BrokerConfig, MessageStoreConfig, NamesrvConfig
from trio_rmq.errors import ClientError, RocketMQError, SendError
from trio_rmq.namesrv.server import serve_name_server
from trio_rmq.testing.simulation.history import History
from trio_rmq.testing.simulation.machine import Machine
from trio_rmq.testing.simulation.plan import Options, Send
from trio_rmq.testing.stores import small_config
from trio_rmq.wire.groups import MessageQueue

TOPIC, GROUP, BROKER_NAME, ROOT = "Simulated", "simulated", "broker-a", "store"
NAME_SERVER, BROKER = "10.0.0.1", "10.0.0.2"
NAME_SERVERS = f"{NAME_SERVER}:9876"
QUEUE_FILE_BYTES = 2000


def store_config(options: Options) -> MessageStoreConfig:
    """The broker's store: small files, and intervals so short that each background service has its turns."""
    return small_config(
        ROOT,
        flush_disk_type=options.flush_disk_type,
        mapped_file_size_commit_log=options.log_file_bytes,
        mapped_file_size_consume_queue=QUEUE_FILE_BYTES,
        flush_commit_log_thorough_interval=1000,
        flush_consume_queue_thorough_interval=3000,
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
        )

        async def serve(*, task_status: trio.TaskStatus[object]) -> None:
            await serve_broker(config, store_config(self._options), disk=machine.disk, task_status=task_status)

        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            task_status.started()


class ProducerProgram:
    """Sends its part of the plan, one message after another, each with one try; then waits."""

    def __init__(self, name: str, sends: Sequence[Send], history: History) -> None:
        self.name = name
        self.done = trio.Event()
        self._sends = sends
        self._history = history
        self.producer: Producer | None = None

    async def run(self, machine: Machine, task_status: trio.TaskStatus[None]) -> None:
        """Send until all is sent, then stay until cancelled."""
        async with Producer(name_servers=NAME_SERVERS, retry_times=0) as producer:
            self.producer = producer
            task_status.started()
            begin = trio.current_time()
            for send in self._sends:
                await trio.sleep_until(begin + send.at)
                await self.send(send.body, send.queue_id)
            self.done.set()
            await trio.sleep_forever()

    async def send(self, body: bytes, queue_id: int) -> bool:
        """One message with one try, noted; whether it was acknowledged."""
        assert self.producer is not None  # noqa: S101 - the program runs
        name = name_of(body)
        self._history.add(self.name, "invoke", id=name, queue=queue_id)
        queue = MessageQueue(topic=TOPIC, broker_name=BROKER_NAME, queue_id=queue_id)
        try:
            result = await self.producer.send(Message(TOPIC, body, keys=name), queue=queue)
        except SendError as error:
            refused = error.response_code is not None
            self._history.add(self.name, "refused" if refused else "info", id=name, code=error.response_code)
            return False
        except (RocketMQError, ClientError) as error:
            self._history.add(self.name, "info", id=name, code=type(error).__name__)
            return False
        if result.status is not SendStatus.SEND_OK:
            self._history.add(self.name, "info", id=name, code=result.status.name)
            return False
        self._history.add(self.name, "ok", id=name, queue=result.queue.queue_id, offset=result.queue_offset)
        return True


class ConsumerProgram:
    """A member of the group, which notes what it is given."""

    def __init__(self, name: str, consume_seconds: float, history: History) -> None:
        self.name = name
        self._consume_seconds = consume_seconds
        self._history = history
        self.consumer: PushConsumer | None = None

    async def run(self, machine: Machine, task_status: trio.TaskStatus[None]) -> None:
        """Consume until cancelled."""
        async with PushConsumer(GROUP, name_servers=NAME_SERVERS, grace_seconds=1.0) as consumer:
            await consumer.subscribe(TOPIC, self._listen)
            self.consumer = consumer
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                self.consumer = None

    async def _listen(self, messages: Sequence[ReceivedMessage]) -> None:
        if self._consume_seconds:
            await anyio.sleep(self._consume_seconds)
        for message in messages:
            name, place = name_of(message.body), {"queue": message.queue.queue_id, "offset": message.queue_offset}
            self._history.add(self.name, "consumed", id=name, **place)
            if not is_whole(name, message.properties):
                self._history.add(self.name, "changed", id=name, properties=message.properties, **place)


def is_whole(name: str, properties: Mapping[str, str]) -> bool:
    """Whether these are the properties of the message with this name: its keys tell it, and no byte was lost."""
    return properties.get("KEYS") == name and not any("\0" in f"{key}{value}" for key, value in properties.items())


def name_of(body: bytes) -> str:
    """The message's name: what stands in its body before the dots, and whole in its keys."""
    return body.rstrip(b".").decode(errors="replace")
