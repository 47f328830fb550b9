"""Pulls: PULL_MESSAGE (11) and LITE_PULL_MESSAGE (361, served alike).

A pull that finds nothing and may wait is held (`Later.hold`): it waits for an arrival in its queue, then runs once more
without waiting.  Invariants: every answer with offsets has all four of them; a held pull commits its offset
once, when it arrives.  Checks, codes and order: RocketMQ PullMessageProcessor (4.9).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio

from trio_rmq.broker import names
from trio_rmq.broker.groups import GroupTable
from trio_rmq.broker.long_polling import HeldPulls
from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.broker.stats import BrokerStats
from trio_rmq.broker.topics import TopicTable, describe
from trio_rmq.broker.wanted import Subscriptions, Wanted
from trio_rmq.config import BrokerConfig
from trio_rmq.errors import RequestError, StoreCorruptError
from trio_rmq.limits import PULL_SUSPEND_MAX_SECONDS
from trio_rmq.remoting.handlers import Flush, GiveUp, HandlerTable, Later, Reply, Resume
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import GetResult, GetStatus
from trio_rmq.store.page_cache import ColdReadError
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import PullMessageRequestHeader, PullMessageResponseHeader
from trio_rmq.wire.sysflag import PERMISSION_READ, PULL_COMMIT_OFFSET, PULL_SUSPEND

COLD_TRIES_MAX = 100
"""Most trips to the disk for one answer that may wait in a thread; only a filter that takes next to nothing needs
several, and only a kernel that drops pages as fast as they come needs more."""

_SUCCESS = int(ResponseCode.SUCCESS)
_CODES = {
    GetStatus.FOUND: ResponseCode.SUCCESS,
    GetStatus.NO_MATCHED_MESSAGE: ResponseCode.PULL_RETRY_IMMEDIATELY,
    GetStatus.MESSAGE_WAS_REMOVING: ResponseCode.PULL_RETRY_IMMEDIATELY,
    GetStatus.OFFSET_FOUND_NULL: ResponseCode.PULL_NOT_FOUND,
    GetStatus.OFFSET_OVERFLOW_ONE: ResponseCode.PULL_NOT_FOUND,
    GetStatus.OFFSET_OVERFLOW_BADLY: ResponseCode.PULL_OFFSET_MOVED,
    GetStatus.OFFSET_TOO_SMALL: ResponseCode.PULL_OFFSET_MOVED,
}


class PullHandlers:
    """Serves messages by queue offset."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: TopicTable,
        groups: GroupTable,
        subscriptions: Subscriptions,
        offsets: ConsumerOffsetTable,
        held_pulls: HeldPulls,
        stats: BrokerStats,
    ) -> None:
        self._config = config
        self.store = store
        self._topics = topics
        self._groups = groups
        self._subscriptions = subscriptions
        self._offsets = offsets
        self.held_pulls = held_pulls
        self._stats = stats

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.PULL_MESSAGE, self.pull)
        table.register(RequestCode.LITE_PULL_MESSAGE, self.pull)

    def pull(self, session: Session, request: Command) -> Command | Later:
        """Answer at once, or hold the pull when nothing is there and it may wait."""
        header = request.decode_header(PullMessageRequestHeader)
        wanted = self.check(session, header)
        offset = header.queue_offset
        try:
            result = self.get(header, offset, wanted)
        except ColdReadError as cold:
            self._commit(header)
            return self._fetch(request, header, wanted, cold)
        flags = header.sys_flag
        if flags & PULL_COMMIT_OFFSET:
            self._commit(header)
        code = _code(result, offset)
        if code == ResponseCode.PULL_NOT_FOUND and flags & PULL_SUSPEND and not self.held_pulls.full:
            if not self._config.long_polling_enable:
                seconds = self._config.short_polling_time_mills / 1000
            else:
                seconds = min(max(header.suspend_timeout_millis, 0) / 1000, PULL_SUSPEND_MAX_SECONDS)
            until = trio.current_time() + seconds
            return Later(hold=_HeldPull(self, session, request, header, wanted, offset, until).hold)
        return _answer(request, result, code)

    def _commit(self, header: PullMessageRequestHeader) -> None:
        if header.sys_flag & PULL_COMMIT_OFFSET and header.commit_offset >= 0:
            self._offsets.commit(header.consumer_group, header.topic, header.queue_id, header.commit_offset)

    def _fetch(self, request: Command, header: PullMessageRequestHeader, wanted: Wanted, cold: ColdReadError) -> Later:
        """Answer once what is not in the page cache has come there: a thread waits for the disk, nobody else."""

        async def fetch() -> Sequence[Command]:
            try:
                result = await self.get_cold(header, header.queue_offset, wanted, cold)
            except RequestError as error:
                return [request.reply(error.response_code, remark=error.remark)]
            return [_answer(request, result, _code(result, header.queue_offset))]

        return Later(fetch)

    async def get_cold(
        self, header: PullMessageRequestHeader, offset: int, wanted: Wanted, cold: ColdReadError | None = None
    ) -> GetResult:
        """`get`, but what is not in the page cache is waited for."""
        for _ in range(COLD_TRIES_MAX):
            if cold is not None:
                await self.store.warm(cold)
            try:
                return self.get(header, offset, wanted)
            except ColdReadError as error:
                cold = error
        return self.get(header, offset, wanted, wait=True)

    def get(self, header: PullMessageRequestHeader, offset: int, wanted: Wanted, *, wait: bool = False) -> GetResult:
        """What the store has for the pull from `offset` on; ColdReadError unless it may `wait` for the disk.

        RequestError when checkCRCOnPull finds the next message damaged.
        """
        try:
            result = self.store.get_messages(
                header.topic,
                header.queue_id,
                offset,
                max_count=header.max_msg_nums,
                max_bytes=header.max_msg_bytes,
                tags_codes=wanted.tags_codes,
                accept=wanted.accept,
                accept_entry=wanted.accept_entry,
                wait=wait,
            )
        except StoreCorruptError as error:  # checkCRCOnPull: the group must not get past it unseen
            raise RequestError(ResponseCode.SYSTEM_ERROR, str(error)) from error
        if result.count:
            self._stats.count_get(header.topic, header.consumer_group, result.count, len(result.body))
        return result

    # -- checks -------------------------------------------------------------------------------------------------

    def check(self, session: Session, header: PullMessageRequestHeader) -> Wanted:
        """Whether the group may read the queue; returns which of its messages it wants."""
        if not self._config.broker_permission & PERMISSION_READ:
            raise RequestError(
                ResponseCode.NO_PERMISSION, f"the broker[{self._config.broker_ip1}] pulling message is forbidden"
            )
        group = self._groups.find(header.consumer_group)
        if group is None:
            raise RequestError(
                ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
                f"subscription group [{header.consumer_group}] does not exist: {_mend_group(header.consumer_group)}",
            )
        if not group.consume_enable:
            raise RequestError(ResponseCode.NO_PERMISSION, f"subscription group no permission, {header.consumer_group}")
        topic = self._topics.get(header.topic)
        if topic is None:
            raise RequestError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{header.topic}] not exist, apply first please!")
        if not topic.perm & PERMISSION_READ:
            raise RequestError(ResponseCode.NO_PERMISSION, f"the topic[{header.topic}] pulling message is forbidden")
        if not 0 <= header.queue_id < topic.read_queue_nums:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR,
                f"queueId[{header.queue_id}] is illegal, topic:[{header.topic}] topicConfig.readQueueNums:"
                f"[{topic.read_queue_nums}] consumer:[{session.peer}]; {describe(topic)}",
            )
        return self._subscriptions.wanted(header, broadcast_enabled=group.consume_broadcast_enable)


class _HeldPull:
    """A pull that waits until something is there from `offset` on, or until that time of the loop, and looks again."""

    __slots__ = ("_handlers", "_header", "_offset", "_request", "_session", "_until", "_wanted")

    def __init__(
        self,
        handlers: PullHandlers,
        session: Session,
        request: Command,
        header: PullMessageRequestHeader,
        wanted: Wanted,
        offset: int,
        until: float,
    ) -> None:
        self._handlers = handlers
        self._session = session
        self._request = request
        self._header = header
        self._wanted = wanted
        self._offset = offset
        self._until = until

    def hold(self, resume: Resume) -> GiveUp:
        """See `Later.hold`."""
        handlers, header = self._handlers, self._header
        topic, queue_id = header.topic, header.queue_id

        def wake(arrived: bool) -> Flush:
            return resume(partial(self._look, arrived))

        arrived = handlers.store.max_offset(topic, queue_id) > self._offset  # since the look before
        tags_codes = self._wanted.tags_codes
        return handlers.held_pulls.hold(topic, queue_id, tags_codes, self._until, wake, arrived=arrived)

    def _look(self, arrived: bool) -> Sequence[Reply] | Later:
        self._wanted = self._handlers.check(self._session, self._header)
        try:
            result = self._handlers.get(self._header, self._offset, self._wanted)
        except ColdReadError as cold:
            return Later(partial(self._fetch, arrived, cold), held=True)
        return self._answer(arrived, result)

    async def _fetch(self, arrived: bool, cold: ColdReadError) -> Sequence[Reply]:
        result = await self._handlers.get_cold(self._header, self._offset, self._wanted, cold)
        outcome = self._answer(arrived, result)
        return await outcome.run() if isinstance(outcome, Later) else outcome

    def _answer(self, arrived: bool, result: GetResult) -> Sequence[Reply] | Later:
        missed = self._wanted.accept is not None and result.status is GetStatus.NO_MATCHED_MESSAGE
        if missed and arrived and trio.current_time() < self._until:
            # Nothing for this filter: go on waiting behind it.  Tags need no such look, they wake nobody else.
            self._offset = result.next_begin_offset
            return Later(hold=self.hold)
        return [_answer(self._request, result, _code(result, self._offset))]


def _mend_group(group: str) -> str:
    return names.group_problem(group) or "create it first (autoCreateSubscriptionGroup is off)"


def _code(result: GetResult, asked_offset: int) -> ResponseCode:
    code = _CODES.get(result.status)
    if code is None:  # no such queue, or an empty one
        return ResponseCode.PULL_OFFSET_MOVED if asked_offset != 0 else ResponseCode.PULL_NOT_FOUND
    return code


def _answer(request: Command, result: GetResult, code: ResponseCode) -> Command:
    return request.reply(
        int(code),
        header=PullMessageResponseHeader(
            suggest_which_broker_id=0,
            next_begin_offset=result.next_begin_offset,
            min_offset=result.min_offset,
            max_offset=result.max_offset,
        ),
        body=result.body,
        remark=result.status.name,
    )
