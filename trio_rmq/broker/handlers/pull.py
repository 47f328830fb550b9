"""Pulls: PULL_MESSAGE (11) and LITE_PULL_MESSAGE (361, served alike).

A pull that finds nothing and may wait is held (`Later`, `held=True`): it waits for an arrival in its queue, then runs
once more without waiting.  Invariants: every answer with offsets has all four of them; a held pull commits its offset
once, when it arrives.  Checks, codes and order: RocketMQ PullMessageProcessor (4.9).
"""

from __future__ import annotations

from collections.abc import Sequence

from trio_rmq.broker import names
from trio_rmq.broker.groups import GroupTable
from trio_rmq.broker.long_polling import HeldPulls
from trio_rmq.broker.members import Members
from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.broker.topics import TopicTable, describe
from trio_rmq.config import BrokerConfig
from trio_rmq.errors import RequestError
from trio_rmq.limits import PULL_SUSPEND_MAX_SECONDS
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import GetResult, GetStatus
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import PullMessageRequestHeader, PullMessageResponseHeader
from trio_rmq.wire.heartbeat import (
    BROADCASTING,
    EXPRESSION_TAG,
    SUBSCRIBE_ALL,
    SubscriptionData,
    build_subscription,
)
from trio_rmq.wire.sysflag import PERMISSION_READ, PULL_COMMIT_OFFSET, PULL_SUBSCRIPTION, PULL_SUSPEND

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
        members: Members,
        offsets: ConsumerOffsetTable,
        held_pulls: HeldPulls,
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._groups = groups
        self._members = members
        self._offsets = offsets
        self._held_pulls = held_pulls
        self._tags_codes: dict[str, frozenset[int] | None] = {SUBSCRIBE_ALL: None, "": None}

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.PULL_MESSAGE, self.pull)
        table.register(RequestCode.LITE_PULL_MESSAGE, self.pull)

    def pull(self, session: Session, request: Command) -> Command | Later:
        """Answer at once, or hold the pull when nothing is there and it may wait."""
        header = request.decode_header(PullMessageRequestHeader)
        tags_codes = self._check(session, header)
        topic, queue_id, offset = header.topic, header.queue_id, header.queue_offset
        result = self._store.get_messages(
            topic,
            queue_id,
            offset,
            max_count=header.max_msg_nums,
            max_bytes=header.max_msg_bytes,
            tags_codes=tags_codes,
        )
        flags = header.sys_flag
        if flags & PULL_COMMIT_OFFSET and header.commit_offset >= 0:
            self._offsets.commit(header.consumer_group, topic, queue_id, header.commit_offset)
        code = _code(result, offset)
        if code == ResponseCode.PULL_NOT_FOUND and flags & PULL_SUSPEND and not self._held_pulls.full:
            if not self._config.long_polling_enable:
                seconds = self._config.short_polling_time_mills / 1000
            else:
                seconds = min(max(header.suspend_timeout_millis, 0) / 1000, PULL_SUSPEND_MAX_SECONDS)
            return self._hold(session, request, header, tags_codes, seconds)
        return _answer(request, result, code)

    def _hold(
        self,
        session: Session,
        request: Command,
        header: PullMessageRequestHeader,
        tags_codes: frozenset[int] | None,
        seconds: float,
    ) -> Later:
        topic, queue_id, offset = header.topic, header.queue_id, header.queue_offset

        async def wait() -> Sequence[Command]:
            # Between the look above and this task's start something may have arrived: look before waiting.
            if self._store.max_offset(topic, queue_id) <= offset:
                await self._held_pulls.wait_arrival(topic, queue_id, tags_codes, seconds)
            try:
                tags_now = self._check(session, header)
            except RequestError as error:
                return [request.reply(error.response_code, remark=error.remark)]
            result = self._store.get_messages(
                topic,
                queue_id,
                offset,
                max_count=header.max_msg_nums,
                max_bytes=header.max_msg_bytes,
                tags_codes=tags_now,
            )
            return [_answer(request, result, _code(result, offset))]

        return Later(wait, held=True)

    # -- checks -------------------------------------------------------------------------------------------------

    def _check(self, session: Session, header: PullMessageRequestHeader) -> frozenset[int] | None:
        """Whether the group may read the queue; returns the tag hashes it wants, None for all messages."""
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
        if header.sys_flag & PULL_SUBSCRIPTION:
            return self._requested_tags(header)
        return self._subscribed_tags(header, broadcast_enabled=group.consume_broadcast_enable)

    def _requested_tags(self, header: PullMessageRequestHeader) -> frozenset[int] | None:
        """The tag filter that the request carries."""
        if header.expression_type is not None and header.expression_type != EXPRESSION_TAG:
            raise _no_sql(header.expression_type)
        text = header.subscription or ""
        try:
            return self._tags_codes[text]
        except KeyError:
            codes = _codes(build_subscription(header.topic, text))
            if len(self._tags_codes) > 10_000:
                self._tags_codes.clear()
                self._tags_codes.update({SUBSCRIBE_ALL: None, "": None})
            self._tags_codes[text] = codes
            return codes

    def _subscribed_tags(self, header: PullMessageRequestHeader, *, broadcast_enabled: bool) -> frozenset[int] | None:
        """The tag filter of the group's heartbeats."""
        connected = self._members.consumer_group(header.consumer_group)
        if connected is None:
            raise RequestError(ResponseCode.SUBSCRIPTION_NOT_EXIST, "the consumer's group info not exist")
        if connected.message_model == BROADCASTING and not broadcast_enabled:
            raise RequestError(
                ResponseCode.NO_PERMISSION,
                f"the consumer group[{header.consumer_group}] can not consume by broadcast way",
            )
        data = connected.subscriptions.get(header.topic)
        if data is None:
            raise RequestError(ResponseCode.SUBSCRIPTION_NOT_EXIST, "the consumer's subscription not exist")
        if data.sub_version < header.sub_version:
            raise RequestError(ResponseCode.SUBSCRIPTION_NOT_LATEST, "the consumer's subscription not latest")
        if data.expression_type != EXPRESSION_TAG:
            raise _no_sql(data.expression_type)
        return _codes(data)


def _codes(data: SubscriptionData) -> frozenset[int] | None:
    """The tag hashes a subscription wants; None for all messages, an empty set when its text names no tag."""
    if data.class_filter_mode or data.sub_string in (SUBSCRIBE_ALL, ""):
        return None
    return frozenset(data.code_set or build_subscription(data.topic, data.sub_string).code_set)


def _no_sql(expression_type: str) -> RequestError:
    return RequestError(
        ResponseCode.SYSTEM_ERROR, f"filters of type {expression_type} are not served by this version; filter by tags"
    )


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
