"""Which queues a push consumer holds: the one task that takes, leaves and restarts them.

A round asks who the members are, has the allocation say which queues are ours, lets go of the others and takes what is
new.  Invariants: only this task changes `held`; a queue is let go in this order: no more calls, running ones end (for a
while; orderly: until they end), progress is kept, the lock is given back; an orderly queue is taken only when its lock
is ours, and begins where the group's offset stands after that.  Whatever is cancelled: until a queue's progress was
kept here it is held, and kept when the consumer closes.  Source of the rules: RocketMQ RebalanceImpl,
RebalancePushImpl, MQClientInstance.resetOffset.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, TypeVar

import anyio

from trio_rmq.client.allocation import Allocation
from trio_rmq.client.held_queue import RETRY_PREFIX, HeldQueue
from trio_rmq.client.membership import GroupMembership
from trio_rmq.client.offset_store import OffsetStore, ReadOffset
from trio_rmq.client.queue_locks import QueueLocks
from trio_rmq.client.queue_offsets import QueueOffsets
from trio_rmq.errors import ClientError, ProtocolError, RemotingError, ResponseError, RocketMQError
from trio_rmq.wire.groups import MessageQueue

logger = logging.getLogger(__name__)

T = TypeVar("T")

REBALANCE_SECONDS = 20.0
FIRST_RETRY_SECONDS = 0.1
LOCK_RETRY_SECONDS = 1.0
"""How soon a round is repeated in which another member still had a lock."""
LET_GO_SECONDS = 1.0
"""How long running calls of queues that are let go are waited for."""
_FAILURES = (RemotingError, ResponseError, ProtocolError, ClientError)


async def _each(function: Callable[[T], Coroutine[Any, Any, None]], items: Iterable[T]) -> None:
    """Call for all at once; for one without a task."""
    waiting = list(items)
    if len(waiting) == 1:
        await function(waiting[0])
    elif waiting:
        async with anyio.create_task_group() as group:
            for item in waiting:
                group.start_soon(function, item)


class Rebalance:
    """The queues of one member of `group`; `locks` for an orderly one, `on_take` starts what works on a queue."""

    def __init__(
        self,
        membership: GroupMembership,
        offsets: QueueOffsets,
        store: OffsetStore,
        allocation: Allocation,
        *,
        group: str,
        client_id: str,
        broadcasting: bool,
        from_first: bool,
        from_timestamp_ms: int | None,
        orderly: bool,
        locks: QueueLocks | None,
        on_take: Callable[[HeldQueue], None],
        held: dict[MessageQueue, HeldQueue],
    ) -> None:
        self._membership = membership
        self._offsets = offsets
        self._store = store
        self._allocation = allocation
        self._group = group
        self._client_id = client_id
        self._broadcasting = broadcasting
        self._from_first = from_first
        self._from_timestamp_ms = from_timestamp_ms
        self._orderly = orderly
        self._locks = locks
        self._on_take = on_take
        self._held = held
        self._restarts: dict[MessageQueue, int] = {}
        self._relocked: set[MessageQueue] = set()
        self._introduce = False
        self._now = anyio.Event()
        self._rounds = anyio.Event()

    # -- what others ask for ------------------------------------------------------------------------------------

    def soon(self) -> None:
        """Something changed: have a round now."""
        self._now.set()

    def introduce(self) -> None:
        """Some broker does not know this member: tell them all, then have a round."""
        self._introduce = True
        self.soon()

    def restart(self, queue: MessageQueue, offset: int) -> None:
        """Begin a held queue anew at `offset`: it was reset, or the broker does not have what was asked for."""
        held = self._held.get(queue)
        if held is not None:
            self._restarts[queue] = offset
            held.leave()
            self.soon()

    def relocked(self, held: HeldQueue) -> None:
        """A lock that was not ours for a while is again: look whether somebody went on meanwhile."""
        self._relocked.add(held.queue)
        self.soon()

    async def wait(self, wanted: Callable[[], bool]) -> None:
        """Wait until `wanted` holds; asked after each round."""
        while not wanted():
            await self._rounds.wait()

    # -- rounds -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Rounds when asked for, and every 20 seconds; sooner after one that could not be finished."""
        retry_seconds: float | None = None
        lacks_lock = False
        while True:
            pause = LOCK_RETRY_SECONDS if lacks_lock else REBALANCE_SECONDS
            with anyio.move_on_after(pause if retry_seconds is None else retry_seconds):
                await self._now.wait()
            self._now = anyio.Event()
            if retry_seconds is not None or self._introduce:
                # maybe a broker was not known before, or lost its memory, so it knows nothing of us
                self._introduce = False
                await self._membership.introduce()
            is_known, is_settled = await self._round()
            lacks_lock = is_known and not is_settled and self._locks is not None
            if is_settled or lacks_lock:
                retry_seconds = None
            else:
                retry_seconds = min((retry_seconds or FIRST_RETRY_SECONDS) * 2, REBALANCE_SECONDS)
            self._rounds.set()
            self._rounds = anyio.Event()

    async def _round(self) -> tuple[bool, bool]:
        """Whether it is known what is ours, and whether just that is held now."""
        await self._restart_all()
        await self._look_after_relocked()
        topics = {*self._membership.subscriptions, *(queue.topic for queue in self._held)}
        known = True
        mine: set[MessageQueue] = set()
        for topic in sorted(topics):
            assigned = await self._assigned(topic)
            if assigned is None:
                known = False
                mine.update(queue for queue in self._held if queue.topic == topic)
            else:
                mine.update(assigned)
        await self._let_go([held for queue, held in self._held.items() if queue not in mine or held.leaving])
        await self._take(sorted(mine - self._held.keys(), key=lambda queue: queue.sort_key))
        is_settled = known and mine == self._held.keys() and not any(held.leaving for held in self._held.values())
        return known, is_settled

    async def _assigned(self, topic: str) -> list[MessageQueue] | None:
        """The queues of a topic that are ours by now, None when that cannot be told."""
        if topic not in self._membership.subscriptions:
            return []
        try:
            queues = await self._offsets.queues(topic)
            if self._broadcasting:
                return queues
            members = await self._membership.members(topic)
            if self._client_id not in members:  # a broker that was restarted, or met us only now
                await self._membership.introduce()
                members = await self._membership.members(topic)
        except _FAILURES as error:
            logger.debug("group %s: no rebalance of %s now: %s", self._group, topic, error)
            return None
        return self._allocation(self._client_id, queues, members) if self._client_id in members else []

    # -- letting go ---------------------------------------------------------------------------------------------

    async def _let_go(self, leaving: Collection[HeldQueue]) -> None:
        await self._stop(leaving)
        done = [held for held in leaving if not (self._orderly and held.calls)]
        await _each(self._keep_progress, done)
        if self._locks is not None:
            await self._locks.unlock(held.queue for held in done)
        for held in done:
            held.let_go()
            del self._held[held.queue]
            self._restarts.pop(held.queue, None)
            self._store.table.forget(held.queue)
            logger.info("group %s lets go of %s at %d", self._group, held.queue, held.state.commit_offset)

    async def _stop(self, leaving: Collection[HeldQueue]) -> None:
        """End pulls, begin no calls, and give running ones a moment."""
        for held in leaving:
            held.leave()
        with anyio.move_on_after(LET_GO_SECONDS):
            for held in leaving:
                await held.wait_idle()

    async def _keep_progress(self, held: HeldQueue) -> None:
        if not self.remember(held):
            return
        try:
            await self._store.persist([held.queue])
        except RocketMQError as error:
            logger.warning("group %s: the offset of %s is not committed: %s", self._group, held.queue, error)

    def remember(self, held: HeldQueue) -> bool:
        """Enter a queue's progress in the offset store; not while its lock may be another's, who went on from there."""
        if held.state.dropped or not held.is_locked(anyio.current_time()):
            return False
        offset = self._restarts.get(held.queue, held.state.commit_offset)
        self._store.table.update(held.queue, offset, increase_only=False)
        return True

    # -- taking -------------------------------------------------------------------------------------------------

    async def _take(self, queues: Collection[MessageQueue]) -> None:
        granted: dict[MessageQueue, float] = {}
        if self._locks is not None and queues:
            granted = await self._locks.lock(queues)
            queues = [queue for queue in queues if granted.get(queue)]

        async def take(queue: MessageQueue) -> None:
            try:
                offset = await self._first_offset(queue)
            except _FAILURES as error:
                logger.warning("group %s: the offset of %s is not to be had: %s", self._group, queue, error)
                return
            self._hold(queue, offset, locked_until=granted.get(queue))

        await _each(take, queues)

    def _hold(self, queue: MessageQueue, offset: int, *, locked_until: float | None) -> None:
        held = self._held[queue] = HeldQueue(queue, offset, now=anyio.current_time(), on_idle=self.soon)
        if locked_until is not None:
            held.locked_until = locked_until
        self._on_take(held)
        logger.info("group %s takes %s from %d", self._group, queue, offset)

    async def _first_offset(self, queue: MessageQueue) -> int:
        offset = await self._store.read(queue, ReadOffset.FROM_STORE)
        if offset is not None:
            return offset
        if self._from_timestamp_ms is not None and not queue.topic.startswith(RETRY_PREFIX):
            return await self._offsets.offset_for_timestamp(queue, self._from_timestamp_ms)
        if self._from_first or queue.topic.startswith(RETRY_PREFIX):
            return await self._offsets.min_offset(queue)
        return await self._offsets.max_offset(queue)

    # -- beginning anew -----------------------------------------------------------------------------------------

    async def _restart_all(self) -> None:
        """Begin the queues anew that were asked for; an orderly one whose call runs waits for its end."""
        asked = [self._held[queue] for queue in self._restarts]
        await self._stop(asked)
        for held in asked:
            if self._orderly and held.calls:
                continue
            queue, offset = held.queue, self._restarts.pop(held.queue)
            held.let_go()
            self._store.table.update(queue, offset, increase_only=False)
            self._hold(queue, offset, locked_until=held.locked_until)
            try:
                await self._store.persist([queue])
            except RocketMQError as error:
                logger.warning("group %s: offset %d of %s is not committed: %s", self._group, offset, queue, error)

    async def _look_after_relocked(self) -> None:
        for queue in list(self._relocked):
            held = self._held.get(queue)
            if held is None or self._locks is None:
                self._relocked.discard(queue)
                continue
            try:
                granted = await self._locks.lock([queue])
                offset = await self._store.read(queue, ReadOffset.FROM_STORE) if granted.get(queue) else None
            except _FAILURES as error:
                logger.debug("group %s: %s stays unlocked: %s", self._group, queue, error)
                continue
            if not granted.get(queue):
                continue
            self._relocked.discard(queue)
            if offset is not None and offset > held.state.commit_offset:
                self.restart(queue, offset)
            else:
                held.locked_until = granted[queue]
                held.tell_changed()
