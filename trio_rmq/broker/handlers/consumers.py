"""Requests that a broker passes on to connected consumers: reset of offsets, status, running state, one message.

222 and 223 go to all members of a group (220, 221), 307 and 309 to one.  Source: RocketMQ Broker2Client and
AdminBrokerProcessor (4.9); a reset of one queue, or to one offset, is 5.x's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from trio_rmq.broker.members import Member, Members
from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.broker.topics import TopicTable
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ProtocolError, RemotingError, RequestError, RequestTimeoutError
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.consumer_stats import ProducerInfo, ProducerTableInfo, encode_producer_table
from trio_rmq.wire.fastjson import encode_json
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.ids import decode_offset_id
from trio_rmq.wire.stats import (
    GetConsumerStatusBody,
    ResetOffsetBody,
    decode_consumer_status,
    encode_consumer_status,
    encode_reset_offset,
)

logger = logging.getLogger(__name__)

STATUS_SECONDS = 5.0
CALL_SECONDS = 10.0
"""How long one consumer has for its answer (Broker2Client)."""
VERSION_3_0_7, VERSION_3_1_8 = 28, 62
"""Ordinals in RocketMQ's MQVersion of the first client that understands 220 and 221, and 307 and 309."""
CPP = "CPP"


class ConsumerCallHandlers:
    """Asks and tells connected consumers on behalf of tools."""

    def __init__(
        self,
        broker_name: str,
        store: MessageStore,
        topics: TopicTable,
        members: Members,
        offsets: ConsumerOffsetTable,
    ) -> None:
        self._broker_name = broker_name
        self._store = store
        self._topics = topics
        self._members = members
        self._offsets = offsets

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, self.reset)
        table.register(RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS, self.status)
        table.register(RequestCode.GET_CONSUMER_RUNNING_INFO, self.running_info)
        table.register(RequestCode.CONSUME_MESSAGE_DIRECTLY, self.consume_directly)
        table.register(RequestCode.GET_ALL_PRODUCER_INFO, self.all_producers)

    # -- all members --------------------------------------------------------------------------------------------

    def reset(self, session: Session, request: Command) -> Command:
        """222: have a group go on where a time is, in every queue of a topic; -1 is the end.

        Without `isForce` no queue goes forward.  The members are told (220) and commit it themselves; nobody online is
        206.  One queue, or an offset (5.x), is set here at once, online or not, and told to the members.
        """
        header = request.decode_header(headers.ResetOffsetRequestHeader)
        topic = self._topics.get(header.topic)
        if topic is None:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR,
                f"[reset-offset] reset offset failed, no topic in this broker. topic={header.topic}",
            )
        offset_wanted = header.offset is not None and header.offset >= 0  # tools of 5.x send -1 for none
        here = header.queue_id >= 0 or offset_wanted
        queue_ids = range(topic.write_queue_nums) if header.queue_id < 0 else (header.queue_id,)
        if header.queue_id >= topic.write_queue_nums:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR,
                f"queueId {header.queue_id} must be below the topic's {topic.write_queue_nums} queues",
            )
        table: dict[MessageQueue, int] = {}
        for queue_id in queue_ids:
            consumed = self._offsets.query(header.group, header.topic, queue_id)
            if consumed is None and not here:
                raise RequestError(ResponseCode.SYSTEM_ERROR, f"THe consumer group <{header.group}> not exist")
            wanted = self._wanted_offset(header, queue_id)
            if consumed is not None and wanted >= consumed and not (header.is_force or offset_wanted):
                wanted = consumed
            table[MessageQueue(topic=header.topic, broker_name=self._broker_name, queue_id=queue_id)] = wanted
        members = self._members_of(header.group)
        if not members and not here:
            raise RequestError(
                ResponseCode.CONSUMER_NOT_ONLINE,
                f"Consumer not online, so can not reset offset, Group: {header.group} Topic: {header.topic} "
                f"Timestamp: {header.timestamp}",
            )
        if here:
            for queue, offset in table.items():
                self._offsets.commit(header.group, header.topic, queue.queue_id, offset)
        for member in members:
            _check_version(member, VERSION_3_0_7)
            as_list = CPP in (member.language, request.language)
            member.session.send_nowait(
                Command(
                    RequestCode.RESET_CONSUMER_CLIENT_OFFSET,
                    header=headers.ResetOffsetRequestHeader(
                        group=header.group, topic=header.topic, timestamp=header.timestamp, is_force=header.is_force
                    ),
                    body=_offset_list(table) if as_list else encode_reset_offset(ResetOffsetBody(offset_table=table)),
                )
            )
        logger.warning(
            "group %s is set to %s in %s by %s (%d members told)",
            header.group,
            ", ".join(f"{queue.queue_id}:{offset}" for queue, offset in table.items()),
            header.topic,
            session.peer,
            len(members),
        )
        return request.reply(body=encode_reset_offset(ResetOffsetBody(offset_table=table)))

    def _wanted_offset(self, header: headers.ResetOffsetRequestHeader, queue_id: int) -> int:
        first = max(self._store.min_offset(header.topic, queue_id), 0)
        after = max(self._store.max_offset(header.topic, queue_id), 0)
        if header.offset is not None and header.offset >= 0:
            if not first <= header.offset <= after:
                raise RequestError(
                    ResponseCode.SYSTEM_ERROR,
                    f"offset {header.offset} of queue {queue_id} must be from {first} to {after}",
                )
            return header.offset
        if header.timestamp == -1:
            return after
        return max(self._store.offset_by_time(header.topic, queue_id, header.timestamp), 0)

    def status(self, session: Session, request: Command) -> Later:
        """223: the offsets of a group's members, or of one of them, as they know them themselves."""
        header = request.decode_header(headers.GetConsumerStatusRequestHeader)
        asked = (header.client_addr or "").strip()
        members = self._members_of(header.group)
        if not members:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR, f"No Any Consumer online in the consumer group: [{header.group}]"
            )
        for member in members:
            _check_version(member, VERSION_3_0_7)

        async def answer() -> Sequence[Command]:
            body = GetConsumerStatusBody()

            async def ask(member: Member) -> None:
                command = Command(
                    RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT,
                    header=headers.GetConsumerStatusRequestHeader(topic=header.topic, group=header.group),
                )
                try:
                    told = await member.session.request(command, STATUS_SECONDS)
                    if told.code == ResponseCode.SUCCESS and told.body:
                        body.consumer_table[member.client_id] = decode_consumer_status(told.body).message_queue_table
                except (RemotingError, ProtocolError) as error:
                    logger.warning("consumer %s does not tell its status: %s", member.client_id, error)

            async with trio.open_nursery() as nursery:
                for member in members:
                    if asked in ("", member.client_id):
                        nursery.start_soon(ask, member)
            body.consumer_table = {name: body.consumer_table[name] for name in sorted(body.consumer_table)}
            return [request.reply(body=encode_consumer_status(body))]

        return Later(answer)

    def _members_of(self, group: str) -> list[Member]:
        connected = self._members.consumer_group(group)
        return [] if connected is None else list(connected.members.values())

    # -- one member ---------------------------------------------------------------------------------------------

    def running_info(self, session: Session, request: Command) -> Later:
        """307: one consumer's state, as it tells it."""
        header = request.decode_header(headers.GetConsumerRunningInfoRequestHeader)
        return self._pass_on(request, header.consumer_group, header.client_id, request.ext_fields(), request.body)

    def consume_directly(self, session: Session, request: Command) -> Later:
        """309: have one consumer consume one stored message now; what became of it, as the consumer tells it."""
        header = request.decode_header(headers.ConsumeMessageDirectlyResultRequestHeader)
        try:
            _, physical_offset = decode_offset_id(header.msg_id or "")
        except ProtocolError as error:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"msgId {header.msg_id!r} is no offset id: {error}") from None
        record = self._store.record_at(physical_offset)
        if record is None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"no message has the id {header.msg_id} on this broker")
        fields = {**request.ext_fields(), "brokerName": self._broker_name}
        return self._pass_on(request, header.consumer_group, header.client_id or "", fields, record)

    def _pass_on(self, request: Command, group: str, client_id: str, fields: dict[str, str], body: bytes) -> Later:
        member = next((member for member in self._members_of(group) if member.client_id == client_id), None)
        if member is None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"The Consumer <{group}> <{client_id}> not online")
        _check_version(member, VERSION_3_1_8)

        async def answer() -> Sequence[Command]:
            try:
                told = await member.session.request(Command(request.code, ext=fields, body=body), CALL_SECONDS)
            except RequestTimeoutError as error:
                remark = f"consumer <{group}> <{client_id}> Timeout: {error}"
                return [request.reply(ResponseCode.CONSUME_MSG_TIMEOUT, remark=remark)]
            except RemotingError as error:
                remark = f"invoke consumer <{group}> <{client_id}> Exception: {error}"
                return [request.reply(ResponseCode.SYSTEM_ERROR, remark=remark)]
            return [request.reply(told.code, ext=told.ext_fields() or None, body=told.body, remark=told.remark)]

        return Later(answer)

    def all_producers(self, session: Session, request: Command) -> Command:
        """328: every connected producer by group."""
        table = ProducerTableInfo()
        for group, producers in self._members.all_producers().items():
            table.data[group] = [
                ProducerInfo(
                    client_id=member.client_id,
                    remote_ip=f"/{member.session.peer}",  # as Java prints an address
                    language=member.language,
                    version=member.version,
                    last_update_timestamp=wall_ms() - round((trio.current_time() - member.last_heard) * 1000),
                )
                for member in producers
            ]
        return request.reply(body=encode_producer_table(table))


def _check_version(member: Member, version: int) -> None:
    if member.version < version:
        raise RequestError(
            ResponseCode.SYSTEM_ERROR,
            f"the client {member.client_id} does not support this feature. version={member.version}: upgrade it",
        )


def _offset_list(table: dict[MessageQueue, int]) -> bytes:
    """The body of 220 as the C++ client reads it (ResetOffsetBodyForC)."""
    offsets = [
        {"brokerName": queue.broker_name, "offset": offset, "queueId": queue.queue_id, "topic": queue.topic}
        for queue, offset in table.items()
    ]
    return encode_json({"offsetTable": offsets})
