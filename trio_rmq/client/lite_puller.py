"""Pulls ahead for a lite pull consumer: one task a queue, and the messages that wait to be handed out.

Invariants: a queue has one pull task from `take` until `stop`; what it brings is seen only by `next_messages`; a task
that finds its queue paused or full waits for an event.  Which queues there are is decided elsewhere.
"""

from __future__ import annotations

import logging

import anyio
import anyio.abc

from trio_rmq.client.lite_queue import LiteQueue
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.client.pull_calls import pull_filtered
from trio_rmq.client.queue_offsets import QueueOffsets
from trio_rmq.errors import ClientError, ProtocolError, RemotingError, ResponseError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.heartbeat import SubscriptionData, build_subscription

logger = logging.getLogger(__name__)

HOLD_SECONDS = 15.0
"""How long a broker holds a pull that finds nothing."""
ERROR_PAUSE_SECONDS = 1.0
"""Pause of a queue's pull after an error; a seek ends it."""


class _Held:
    """One queue and the scopes of its pull task."""

    def __init__(self, state: LiteQueue) -> None:
        self.state = state
        self.life = anyio.CancelScope()
        self.pulling = anyio.CancelScope()
        self.changed = anyio.Event()

    def wake(self) -> None:
        """There may be room, or another place to pull from."""
        self.changed.set()
        self.changed = anyio.Event()


class LitePuller:
    """The queues held, in the order in which they are asked for messages.

    `subscriptions` gives the filter of a topic (all without one); `count_max` and `size_max_bytes` bound what waits of
    one queue.
    """

    def __init__(
        self,
        remoting: RemotingClient,
        offsets: QueueOffsets,
        group: str,
        subscriptions: dict[str, SubscriptionData],
        *,
        pull_batch_size: int,
        count_max: int,
        size_max_bytes: int,
        namespace: str = "",
    ) -> None:
        self._remoting = remoting
        self._offsets = offsets
        self._group = group
        self._subscriptions = subscriptions
        self._namespace = namespace
        self._pull_batch_size = pull_batch_size
        self._count_max = count_max
        self._size_max_bytes = size_max_bytes
        self._held: dict[MessageQueue, _Held] = {}
        self._handed: set[MessageQueue] = set()
        self._arrived = anyio.Event()

    # -- which queues -------------------------------------------------------------------------------------------

    def take(self, queue: MessageQueue, offset: int, tasks: anyio.abc.TaskGroup) -> None:
        """Begin to pull at `offset`, in a task of `tasks`."""
        state = LiteQueue(queue, offset, count_max=self._count_max, size_max_bytes=self._size_max_bytes)
        held = self._held[queue] = _Held(state)
        tasks.start_soon(self._run_pull, held)

    def stop(self, queue: MessageQueue) -> int:
        """End its task and hand out nothing more; the offset to commit.  `remove` follows."""
        held = self._held[queue]
        held.state.paused = True
        held.life.cancel()
        return held.state.commit_offset

    def remove(self, queue: MessageQueue) -> None:
        """Forget a stopped queue."""
        del self._held[queue]
        self._handed.discard(queue)

    def queues(self, topic: str | None = None) -> list[MessageQueue]:
        """The queues held, of a topic or all, in Java's order."""
        queues = [queue for queue in self._held if topic is None or queue.topic == topic]
        return sorted(queues, key=lambda queue: queue.sort_key)

    def __contains__(self, queue: MessageQueue) -> bool:
        return queue in self._held

    # -- messages -----------------------------------------------------------------------------------------------

    def next_messages(self, count_max: int) -> list[ReceivedMessage]:
        """What waits, up to that many; the queue served goes to the end of the row."""
        taken: list[ReceivedMessage] = []
        for queue, held in list(self._held.items()):
            if len(taken) == count_max:
                break
            was_full = held.state.is_full
            more = held.state.take(count_max - len(taken))
            if more:
                taken += more
                self._handed.add(queue)
                self._held[queue] = self._held.pop(queue)
                if was_full:
                    held.wake()
        return taken

    async def wait_arrival(self) -> None:
        """Wait until something came, or a queue was resumed, or `tell_arrival` was called."""
        await self._arrived.wait()

    def tell_arrival(self) -> None:
        """Wake who waits."""
        self._arrived.set()
        self._arrived = anyio.Event()

    def acknowledge(self) -> None:
        """All that was handed out is done."""
        for queue in self._handed:
            self._held[queue].state.acknowledge()
        self._handed.clear()

    def acknowledge_before(self, queue: MessageQueue, offset: int) -> None:
        """What was handed out before that offset is done."""
        self._of(queue).state.acknowledge(offset)

    def commit_offsets(self) -> dict[MessageQueue, int]:
        """Of each queue the first message that is not done."""
        return {queue: held.state.commit_offset for queue, held in self._held.items()}

    # -- places -------------------------------------------------------------------------------------------------

    def go_to(self, queue: MessageQueue, offset: int) -> None:
        """Forget what waits and go on there; ClientError for a queue not held."""
        held = self._of(queue)
        held.state.seek(offset)
        held.pulling.cancel()
        held.wake()

    def pause(self, queue: MessageQueue) -> None:
        """Neither pull nor hand out; ClientError for a queue not held."""
        self._of(queue).state.paused = True

    def resume(self, queue: MessageQueue) -> None:
        """Undo `pause`; ClientError for a queue not held."""
        held = self._of(queue)
        held.state.paused = False
        held.wake()
        self.tell_arrival()

    def check(self, queue: MessageQueue) -> None:
        """ClientError for a queue not held."""
        self._of(queue)

    def _of(self, queue: MessageQueue) -> _Held:
        held = self._held.get(queue)
        if held is None:
            raise ClientError(f"{queue} is not this consumer's now: see assignment()")
        return held

    # -- pulling ------------------------------------------------------------------------------------------------

    async def _run_pull(self, held: _Held) -> None:
        with held.life:
            while True:
                while held.state.paused or held.state.is_full:
                    await held.changed.wait()
                with anyio.CancelScope() as held.pulling:
                    await self._pull(held)

    async def _pull(self, held: _Held) -> None:
        state = held.state
        generation = state.generation
        topic = state.queue.topic
        try:
            result = await pull_filtered(
                self._remoting,
                await self._offsets.address(state.queue),
                self._group,
                state.queue,
                offset=state.next_offset,
                subscription=self._subscriptions.get(topic) or build_subscription(topic, "*"),
                max_messages=self._pull_batch_size,
                hold_seconds=HOLD_SECONDS,
                namespace=self._namespace,
            )
        except (RemotingError, ResponseError, ProtocolError, ClientError) as error:
            logger.warning("group %s: pull of %s failed: %s", self._group, state.queue, error)
            with anyio.move_on_after(ERROR_PAUSE_SECONDS):
                await held.changed.wait()
            return
        if state.pulled(result.messages, result.next_offset, generation=generation):
            self.tell_arrival()
