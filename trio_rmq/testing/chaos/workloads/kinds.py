"""The kinds of workload: plain sends, keyed order, batches, transactions, delays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from trio_rmq.client import (
    Message,
    Producer,
    ReceivedMessage,
    SendResult,
    TransactionProducer,
    TransactionState,
)
from trio_rmq.errors import RocketMQError, SendError
from trio_rmq.testing.chaos.scenario import DELAY_LEVELS_MS
from trio_rmq.testing.chaos.workloads.clients import Clients, body_of, name_in

ENDS = ("commit", "commit", "rollback", "asked commit", "asked rollback")
"""How the transactions end, in turn; `asked` ones only when the broker asks."""


async def run_producer(clients: Clients, number: int, done: Callable[[], None]) -> None:
    """One producer of the workload; `done` is called when its last messages are acknowledged."""
    process = f"{clients.group} producer {number}"
    if clients.workload.kind == "transactions":
        await _run_transactions(clients, process, number, done)
        return
    async with Producer(
        name_servers=clients.cluster.name_servers, retry_times=0, timeout_seconds=clients.workload.timeout_seconds
    ) as producer:
        send = {"plain": _plain, "keyed": _keyed, "batches": _batch, "delays": _delayed}[clients.workload.kind]
        once = partial(send, clients, producer, process, number)

        async def last(count: int) -> bool:
            results = [await once(count * len(clients.queues) + place) for place in range(len(clients.queues))]
            return all(result is not None for result in results)

        await clients.paced(once, last)
        done()


async def _plain(clients: Clients, producer: Producer, process: str, number: int, count: int) -> SendResult | None:
    name = f"{clients.topic}-{number}-{count}"
    message = Message(clients.topic, body_of(name, clients.workload.body_bytes))
    queue = clients.queues[count % len(clients.queues)]
    return await clients.noted(process, [name], lambda: producer.send(message, queue=queue), kind="plain")


async def _keyed(clients: Clients, producer: Producer, process: str, number: int, count: int) -> SendResult | None:
    """A key's messages go to its queue, one after the other."""
    key = count % clients.workload.keys
    name = f"{clients.topic}-{number}-{count}"
    message = Message(clients.topic, body_of(name, clients.workload.body_bytes), sharding_key=str(key))
    queue = clients.queues[key % len(clients.queues)]
    more = {"kind": "keyed", "key": f"{number}/{key}", "turn": count // clients.workload.keys}
    return await clients.noted(process, [name], lambda: producer.send(message, queue=queue), **more)


async def _batch(clients: Clients, producer: Producer, process: str, number: int, count: int) -> SendResult | None:
    names = [f"{clients.topic}-{number}-{count}-{part}" for part in range(clients.workload.batch)]
    messages = [Message(clients.topic, body_of(name, clients.workload.body_bytes)) for name in names]
    queue = clients.queues[count % len(clients.queues)]
    more = {"kind": "batches", "batch": f"{number}/{count}"}
    return await clients.noted(process, names, lambda: producer.send_batch(messages, queue=queue), **more)


async def _delayed(clients: Clients, producer: Producer, process: str, number: int, count: int) -> SendResult | None:
    name = f"{clients.topic}-{number}-{count}"
    level = count % len(DELAY_LEVELS_MS) + 1
    message = Message(clients.topic, body_of(name, clients.workload.body_bytes), delay_level=level)
    queue = clients.queues[count % len(clients.queues)]
    more = {"kind": "delays", "delay_ms": DELAY_LEVELS_MS[level - 1]}
    return await clients.noted(process, [name], lambda: producer.send(message, queue=queue), **more)


# ---- transactions ------------------------------------------------------------------------------------------------


def end_of(name: str) -> str:
    """How the transaction of this name ends: all that is needed to answer a broker that asks."""
    return ENDS[int(name.rpartition("-")[2]) % len(ENDS)]


async def _asked(message: ReceivedMessage) -> TransactionState:
    end = end_of(name_in(message.body))
    return TransactionState.COMMIT if end.endswith("commit") else TransactionState.ROLLBACK


async def _told(name: str, transaction_id: str) -> TransactionState:
    end = end_of(name)
    if end.startswith("asked"):
        return TransactionState.UNKNOWN
    return TransactionState.COMMIT if end == "commit" else TransactionState.ROLLBACK


async def _run_transactions(clients: Clients, process: str, number: int, done: Callable[[], None]) -> None:
    workload = clients.workload
    async with TransactionProducer(
        _asked, topics=[clients.topic], group=f"{clients.group}-producer", retry_times=0,
        name_servers=clients.cluster.name_servers, timeout_seconds=workload.timeout_seconds,
    ) as producer:  # fmt: skip

        async def once(count: int) -> bool:
            name = f"{clients.topic}-{number}-{count}"
            message = Message(clients.topic, body_of(name, workload.body_bytes))
            queue = clients.queues[count % len(clients.queues)]
            clients.history.add(process, "invoke", id=name, kind="transactions", end=end_of(name))
            try:
                result = await producer.send_in_transaction(message, partial(_told, name), queue=queue)
            except SendError as error:
                what = "info" if error.response_code is None else "refused"
                clients.history.add(process, what, id=name, code=error.response_code or "no answer")
                return False
            except RocketMQError as error:
                clients.history.add(process, "info", id=name, code=type(error).__name__)
                return False
            more = {"kind": "transactions", "state": result.state.name}
            clients.history.add(process, "ok", id=name, broker=result.sent.queue.broker_name, **more)
            return True

        async def last(count: int) -> bool:
            base = count * len(clients.queues)
            return all([await once(base + place) for place in range(len(clients.queues))])

        await clients.paced(once, last)
        done()
        await trio.sleep_forever()  # the broker may ask until the end
