"""Sends: SEND_MESSAGE (10), SEND_MESSAGE_V2 (310) and SEND_BATCH_MESSAGE (320).

All sends that arrived in one read become one append: the handler checks each, appends the good ones together and
answers them.  Under SYNC_FLUSH the store tells when all of them are synced; those with WAIT=false do not wait.

Invariants: a message is answered SEND_OK only after the store has it with the durability it promises; a bad message
costs nobody else anything.
Checks, codes and remarks: RocketMQ SendMessageProcessor and AbstractSendMessageProcessor (4.9), except where
protocol/differences.md says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trio_rmq.broker import names
from trio_rmq.broker.deferring import Deferral, DeferredMessage, Deferring, Kind
from trio_rmq.broker.groups import GroupTable, retries_most
from trio_rmq.broker.sendable import SendableTopics, SendHeader, any_queue_id, check_queue
from trio_rmq.broker.stored_properties import PROPERTY_END, UNIQUE_KEY_NAME, StoredProperties
from trio_rmq.broker.topics import TopicTable
from trio_rmq.config import BrokerConfig
from trio_rmq.errors import ProtocolError, RequestError, StoreFailedError
from trio_rmq.limits import PROPERTIES_SIZE_MAX_BYTES
from trio_rmq.remoting.handlers import HandlerTable, Later, Reply
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendResult, AppendStatus, NewBatch, NewMessage
from trio_rmq.wire import properties as prop
from trio_rmq.wire.batch import decode_batch
from trio_rmq.wire.binary_layouts import LikeFields
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import FLAG_ONEWAY, Command
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.headers import (
    SendMessageRequestHeader,
    SendMessageRequestHeaderV2,
    SendMessageResponseHeader,
)
from trio_rmq.wire.ids import Host, encode_offset_id, encode_offset_ids
from trio_rmq.wire.send_reply import SendReplyEncoder
from trio_rmq.wire.sysflag import (
    BORN_HOST_V6,
    MULTI_TAGS,
    STORE_HOST_V6,
    TRANSACTION_MASK,
)
from trio_rmq.wire.topics import TopicConfig

MULTI_TAG_FILTER = "MULTI_TAG"
HOST_FLAGS = BORN_HOST_V6 | STORE_HOST_V6

_SLOTS = ("queue_id", "born_timestamp", "properties")
"""What differs between the sends of one producer to one topic, in the order in which clients write it."""

_QUEUE_IDS = {b"%d" % number: number for number in range(1024)}
"""As they come, of the usual queues."""

_UNIQUE_KEY_SIZE = len(UNIQUE_KEY_NAME)

Synced = tuple[Command, Reply]
"""A stored send and its answer, which waits for the sync."""

_SEND_MESSAGE = int(RequestCode.SEND_MESSAGE)
_SEND_BATCH_MESSAGE = int(RequestCode.SEND_BATCH_MESSAGE)
_PUT_OK = AppendStatus.PUT_OK

_CODES = {
    AppendStatus.SERVICE_NOT_AVAILABLE: ResponseCode.SERVICE_NOT_AVAILABLE,
    AppendStatus.MESSAGE_ILLEGAL: ResponseCode.MESSAGE_ILLEGAL,
    AppendStatus.PROPERTIES_SIZE_EXCEEDED: ResponseCode.MESSAGE_ILLEGAL,
    AppendStatus.LMQ_CONSUME_QUEUE_NUM_EXCEEDED: ResponseCode.SYSTEM_ERROR,
}


class SendHandlers:
    """Takes messages into the store.

    `sendable` checks their topics; `store_host` stands in every message id; `deferring` tells which messages are not
    delivered at once.
    """

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: TopicTable,
        groups: GroupTable,
        sendable: SendableTopics,
        *,
        store_host: Host,
        body_size_max_bytes: int,
        deferring: Deferring,
        make_transaction_topics: Callable[[], None],
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._groups = groups
        self._store_host = store_host
        self._answer_ext = {"MSG_REGION": config.region_id, "TRACE_ON": "true" if config.trace_on else "false"}
        self._encode_reply = SendReplyEncoder(store_host, self._answer_ext).encode
        self._body_size_max = body_size_max_bytes
        self._deferring = deferring
        self._make_transaction_topics = make_transaction_topics
        self._has_deferred = False
        # A 5.x client traces the consumption only of messages that say this.
        also = self._answer_ext if config.trace_topic_enable else None
        self._stored = StoredProperties(config.broker_cluster_name, also)
        self._topic = sendable.topic

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register_batch(RequestCode.SEND_MESSAGE_V2, self.send_many)
        table.register_batch(RequestCode.SEND_MESSAGE, self.send_many)
        table.register_batch(RequestCode.SEND_BATCH_MESSAGE, self.send_many)

    # -- one read's sends ---------------------------------------------------------------------------------------

    def send_many(self, session: Session, requests: Sequence[Command]) -> Sequence[Reply | Later]:
        """Append a run of sends with one write; their answers in any order, or one `Later` under SYNC_FLUSH."""
        replies: list[Reply] = []
        synced: list[Synced] = []
        messages: list[NewMessage] = []
        accepted: list[Command] = []
        end = 0  # of what was appended
        code = requests[0].code  # a run has one code
        header_type: type[SendHeader] = (
            SendMessageRequestHeader if code == _SEND_MESSAGE else SendMessageRequestHeaderV2
        )
        is_batch = code == _SEND_BATCH_MESSAGE
        topic: TopicConfig | None = None
        index, count = 0, len(requests)
        while index < count:
            request = requests[index]
            index += 1
            try:
                header = request.decode_header(header_type)
                if topic is None or topic.topic_name != header.topic:
                    topic = self._topic(session, header)  # no other task changes it during the run
                elif header.queue_id >= topic.write_queue_nums:
                    check_queue(session, header.queue_id, topic)
                if is_batch or header.batch:
                    # A batch is stored as one piece, behind what came before it.
                    before, accepted, messages = (accepted, messages), [], []
                    end = max(end, self._append(*before, replies, synced))
                    end = max(end, self._append_batch(session, request, header, topic, replies, synced))
                else:
                    messages.append(self._message(session, request, header, topic))
                    accepted.append(request)
                    if index < count:
                        likes = self._likes(requests, index, messages, topic)
                        accepted += requests[index : index + likes]
                        index += likes
            except RequestError as error:
                if not request.is_oneway:
                    replies.append(request.reply(error.response_code, ext=self._answer_ext, remark=error.remark))
            except ProtocolError as error:
                if not request.is_oneway:
                    replies.append(request.reply(error.response_code, ext=self._answer_ext, remark=str(error)))
        end = max(end, self._append(accepted, messages, replies, synced))
        return [*replies, self._after_sync(synced, end)] if synced else replies

    def _after_sync(self, synced: Sequence[Synced], end: int) -> Later:
        """The answers once the log is synced up to `end`, or 14 in the place of each."""

        def replies(failure: StoreFailedError | None) -> Sequence[Reply]:
            if failure is None:
                return [answer for _, answer in synced]
            code, remark = ResponseCode.SERVICE_NOT_AVAILABLE, str(failure)
            return [request.reply(code, ext=self._answer_ext, remark=remark) for request, _ in synced]

        async def wait() -> Sequence[Reply]:
            try:
                await self._store.wait_durable(end)
            except StoreFailedError as error:
                return replies(error)
            return replies(None)

        def begin(settle: Callable[[Sequence[Reply]], None]) -> None:
            self._store.when_durable(end, lambda failure: settle(replies(failure)))

        return Later(wait, answers=[request for request, _ in synced], begin=begin)

    def _append(
        self, requests: list[Command], messages: list[NewMessage], replies: list[Reply], synced: list[Synced]
    ) -> int:
        """Append, and add each answer to `replies`, or to `synced` when it must wait for the sync.

        Returns where the last record ends; 0 when none was stored.
        """
        if not messages:
            return 0
        if self._has_deferred:
            return self._append_deferred(requests, messages, replies, synced)
        waits = self._store.sync_flush
        encode = self._encode_reply
        results = self._store.append(messages)
        for request, message, result in zip(requests, messages, results, strict=True):
            if request.flag & FLAG_ONEWAY:
                continue
            if result.status is not _PUT_OK:
                replies.append(self._reply(request, message.queue_id, result))
                continue
            answer: Reply | None = encode(
                request.serialize_type, request.opaque, result.physical_offset, message.queue_id, result.queue_offset
            )
            if answer is None:
                answer = self._reply(request, message.queue_id, result)
            if waits and message.wait_for_store:
                synced.append((request, answer))
            else:
                replies.append(answer)
        return _end_of(results) if waits else 0

    def _append_deferred(
        self, requests: list[Command], messages: list[NewMessage], replies: list[Reply], synced: list[Synced]
    ) -> int:
        """`_append` of messages some of which wait in a queue that their senders need not know."""
        self._has_deferred = False
        results = self._store.append(messages)
        for request, message, result in zip(requests, messages, results, strict=True):
            if request.is_oneway:
                continue
            if isinstance(message, DeferredMessage):
                answer = self._reply(
                    request, message.answer_queue_id, result, message.recall_handle, message.transaction_id
                )
            else:
                answer = self._reply(request, message.queue_id, result)
            if self._store.sync_flush and answer.code == ResponseCode.SUCCESS and message.wait_for_store:
                synced.append((request, answer))
            else:
                replies.append(answer)
        return _end_of(results)

    def _append_batch(
        self,
        session: Session,
        request: Command,
        header: SendHeader,
        topic: TopicConfig,
        replies: list[Reply],
        synced: list[Synced],
    ) -> int:
        batch = self._batch(session, request, header, topic)
        result = self._store.append_batch(batch)
        if not request.is_oneway:
            if result.status is not _PUT_OK:
                replies.append(request.reply(_CODES[result.status], ext=self._answer_ext, remark=result.remark))
                return 0
            ids = encode_offset_ids(self._store_host, result.physical_offsets)
            answer = self._stored_reply(request, ",".join(ids), batch.queue_id, result.queue_offset)
            if self._store.sync_flush:
                synced.append((request, answer))
            else:
                replies.append(answer)
        return result.end_physical_offset

    def _reply(
        self,
        request: Command,
        queue_id: int,
        result: AppendResult,
        recall_handle: str | None = None,
        transaction_id: str | None = None,
    ) -> Command:
        if result.status is not _PUT_OK:
            return request.reply(_CODES[result.status], ext=self._answer_ext, remark=result.remark)
        message_id = encode_offset_id(self._store_host, result.physical_offset)
        return self._stored_reply(request, message_id, queue_id, result.queue_offset, recall_handle, transaction_id)

    def _stored_reply(
        self,
        request: Command,
        message_id: str,
        queue_id: int,
        queue_offset: int,
        recall_handle: str | None = None,
        transaction_id: str | None = None,
    ) -> Command:
        header = SendMessageResponseHeader(
            msg_id=message_id,
            queue_id=queue_id,
            queue_offset=queue_offset,
            recall_handle=recall_handle,
            transaction_id=transaction_id,
        )
        return request.reply(header=header, ext=self._answer_ext)

    # -- checks -------------------------------------------------------------------------------------------------

    def _message(self, session: Session, request: Command, header: SendHeader, topic: TopicConfig) -> NewMessage:
        """The checked message of one plain send."""
        body = request.body
        if len(body) > self._body_size_max:
            raise RequestError(
                ResponseCode.MESSAGE_ILLEGAL,
                f"the body has {len(body)} bytes, more than maxMessageSize ({self._body_size_max}): send less",
            )
        text = header.properties or ""
        sys_flag = header.sys_flag & ~HOST_FLAGS
        if topic.topic_filter_type == MULTI_TAG_FILTER:
            sys_flag |= MULTI_TAGS
        name, queue_id, reconsume_times = topic.topic_name, header.queue_id, header.reconsume_times or 0
        if queue_id < 0:
            queue_id = any_queue_id(topic)
        if name.startswith(names.RETRY_PREFIX):
            name, queue_id = self._retry_queue(request, header, queue_id)
            if name != topic.topic_name and "DELAY\x01" in text:  # dead
                text = prop.with_property(text, prop.DELAY, "0")
        deferral = None
        text_bytes = text.encode()
        stored = self._stored.known(text_bytes)
        if stored is None:
            if "DELAY\x01" in text or "TIMER_DE" in text or "TRAN_MSG\x01" in text:
                deferral = self._deferring.of_send(text, reconsume_times)
                stored = self._stored.plain(text) if deferral is None else self._stored.deferred(text)
            else:
                stored = self._stored.plain(text)
                self._stored.remember(text_bytes, stored)
        properties, code, waits = stored
        if len(properties) > PROPERTIES_SIZE_MAX_BYTES:
            raise properties_too_large(len(properties))
        message = NewMessage(
            name,
            queue_id,
            body,
            properties,
            header.flag,
            sys_flag,
            header.born_timestamp,
            session.peer_host,
            reconsume_times,
            0,
            code,
            waits,
        )
        return message if deferral is None else self._deferred(deferral, message)

    def _likes(self, requests: Sequence[Command], index: int, messages: list[NewMessage], topic: TopicConfig) -> int:
        """Add the messages of the requests from `index` on that differ from the one before in nothing to be checked.

        They have its header but for queue, time and properties; their queues are there, their bodies not too large,
        and of their properties is known what is stored.  How many there are: the next one is for `_message`.
        """
        model, fields = messages[-1], requests[index - 1].raw_ext
        if (
            type(fields) is not LikeFields
            or fields.likeness.slots != _SLOTS
            or type(model) is not NewMessage
            or model.topic != topic.topic_name
            or model.topic.startswith(names.RETRY_PREFIX)
        ):
            return 0
        likeness = fields.likeness
        name, flag, sys_flag, born_host = model.topic, model.flag, model.sys_flag, model.born_host
        reconsume_times = model.reconsume_times
        queues, body_size_max, rests = topic.write_queue_nums, self._body_size_max, self._stored.rests
        before, add = len(messages), messages.append
        for request in requests[index:]:
            fields = request.raw_ext
            if type(fields) is not LikeFields or fields.likeness is not likeness:
                break
            _, queue_text, time_text, text = fields.values
            queue_id = _QUEUE_IDS.get(queue_text, -1)
            if queue_id < 0:
                queue_id = int(queue_text) if queue_text.isdigit() else queues
            start, _, rest = text.partition(PROPERTY_END)
            stored = rests.get(rest)
            body = request.body
            if (
                stored is None
                or start[:_UNIQUE_KEY_SIZE] != UNIQUE_KEY_NAME
                or queue_id >= queues
                or len(body) > body_size_max
                or not time_text.isdigit()
            ):
                break
            properties, code, waits = stored
            add(
                NewMessage(
                    name,
                    queue_id,
                    body,
                    start + properties,
                    flag,
                    sys_flag,
                    int(time_text),
                    born_host,
                    reconsume_times,
                    0,
                    code,
                    waits,
                )
            )
        return len(messages) - before

    def _deferred(self, deferral: Deferral, message: NewMessage) -> NewMessage:
        """What is stored of a message that is not to be delivered now."""
        self._has_deferred = True
        if deferral.kind is Kind.HALF:
            self._make_transaction_topics()
            message.sys_flag &= ~TRANSACTION_MASK
        return self._deferring.deferred(deferral, message)

    def _retry_queue(self, request: Command, header: SendHeader, queue_id: int) -> tuple[str, int]:
        """Where a message goes that a consumer sends to its retry topic: there, or to the dead letters."""
        group_name = header.topic.removeprefix(names.RETRY_PREFIX)
        group = self._groups.find(group_name)
        if group is None:
            raise RequestError(
                ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
                f"subscription group not exist, {group_name}; create it first",
            )
        if (header.reconsume_times or 0) < retries_most(request, group, header.max_reconsume_times):
            return header.topic, queue_id
        return self._topics.dead_letter_queue(group_name)

    def _batch(self, session: Session, request: Command, header: SendHeader, topic: TopicConfig) -> NewBatch:
        """The checked messages of a batch."""
        name = topic.topic_name
        if name.startswith(names.RETRY_PREFIX):
            raise RequestError(ResponseCode.MESSAGE_ILLEGAL, "batch request does not support retry group; send singly")
        if len(request.body) > self._body_size_max:
            raise RequestError(
                ResponseCode.MESSAGE_ILLEGAL,
                f"the batch has {len(request.body)} bytes, more than maxMessageSize ({self._body_size_max}): split it",
            )
        items = decode_batch(request.body)
        if not items:
            raise RequestError(ResponseCode.MESSAGE_ILLEGAL, "the batch is empty")
        queue_id = header.queue_id if header.queue_id >= 0 else any_queue_id(topic)
        shared = header.properties or ""
        if ("DELAY\x01" in shared or "TIMER_DE" in shared) and self._deferring.of_commit(shared):
            raise RequestError(ResponseCode.MESSAGE_ILLEGAL, "batch messages cannot be delayed; send singly")
        sys_flag = header.sys_flag & ~HOST_FLAGS
        if sys_flag & TRANSACTION_MASK:
            raise RequestError(ResponseCode.MESSAGE_ILLEGAL, "batch messages cannot be transactional; send singly")
        shared_bytes = self._stored.with_own(shared).encode()
        stored: list[tuple[int, bytes, bytes]] = []
        codes: list[int] = []
        for flag, body, properties in items:
            text = prop.join_properties(properties, shared_bytes)
            if len(text) > PROPERTIES_SIZE_MAX_BYTES:
                raise properties_too_large(len(text))
            tags = prop.property_of_bytes(text, b"TAGS") if b"TAGS\x01" in text else None
            codes.append(0 if tags is None else tags_code(tags.decode("utf-8", "replace")))
            stored.append((flag, body, text))
        reconsume_times = header.reconsume_times or 0
        return NewBatch(
            name, queue_id, stored, codes, sys_flag, header.born_timestamp, session.peer_host, reconsume_times
        )


def _end_of(results: Sequence[AppendResult]) -> int:
    """Where the last stored record ends; 0 when none was stored."""
    for result in reversed(results):
        if result.status is _PUT_OK:
            return result.physical_offset + result.size_bytes
    return 0


def properties_too_large(size: int) -> RequestError:
    """The answer to properties of `size` bytes: 13, with the limit."""
    return RequestError(
        ResponseCode.MESSAGE_ILLEGAL,
        f"the properties take {size} bytes, more than {PROPERTIES_SIZE_MAX_BYTES}: shorten or drop some",
    )
