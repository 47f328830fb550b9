"""Replies to requests: SEND_REPLY_MESSAGE (324) and SEND_REPLY_MESSAGE_V2 (325).

A reply names the client that asked (REPLY_TO_CLIENT).  The broker pushes it (326) over that client's connection, as its
producer's heartbeats tell it, waits for the client's word, and only then answers who replied; with
storeReplyMessageEnable the reply is then also stored, delivered or not.  Invariant: SUCCESS means that the client took
the reply, whatever became of storing it.
Checks, codes and remarks: RocketMQ ReplyMessageProcessor (4.9), except where protocol/differences.md says otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from trio_rmq.broker.handlers.send import properties_too_large
from trio_rmq.broker.members import Members
from trio_rmq.broker.sendable import SendableTopics, SendHeader, any_queue_id
from trio_rmq.clock import wall_ms
from trio_rmq.config import BrokerConfig
from trio_rmq.errors import ProtocolError, RemotingError, RequestError, StoreFailedError
from trio_rmq.limits import PROPERTIES_SIZE_MAX_BYTES
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, NewMessage
from trio_rmq.wire import properties as prop
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.headers import (
    ReplyMessageRequestHeader,
    SendMessageRequestHeader,
    SendMessageRequestHeaderV2,
    SendMessageResponseHeader,
)
from trio_rmq.wire.ids import Host, encode_offset_id, host_text
from trio_rmq.wire.sysflag import BORN_HOST_V6, STORE_HOST_V6

logger = logging.getLogger(__name__)

PUSH_SECONDS = 10.0
"""How long the client that asked has to take the reply (Broker2Client.callClient)."""
NOT_STORED_ID = "0"
"""The message id in the answer to a reply that was delivered and not stored."""


class ReplyHandlers:
    """Passes replies on to the clients that wait for them."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        sendable: SendableTopics,
        members: Members,
        *,
        store_host: Host,
        body_size_max_bytes: int,
    ) -> None:
        self._config = config
        self._store = store
        self._sendable = sendable
        self._members = members
        self._store_host = store_host
        self._body_size_max = body_size_max_bytes
        self._answer_ext = {"MSG_REGION": config.region_id, "TRACE_ON": "true" if config.trace_on else "false"}

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.SEND_REPLY_MESSAGE, self.reply)
        table.register(RequestCode.SEND_REPLY_MESSAGE_V2, self.reply)

    def reply(self, session: Session, request: Command) -> Command | Later:
        """324 and 325: push the reply to the client that its property REPLY_TO_CLIENT names, and store it."""
        header_type: type[SendHeader] = (
            SendMessageRequestHeader if request.code == RequestCode.SEND_REPLY_MESSAGE else SendMessageRequestHeaderV2
        )
        try:
            header = request.decode_header(header_type)
            topic = self._sendable.topic(session, header)
            self._check_size(request, header)
        except (RequestError, ProtocolError) as error:
            return request.reply(error.response_code, ext=self._answer_ext, remark=str(error))
        queue_id = header.queue_id if header.queue_id >= 0 else any_queue_id(topic)

        async def answer() -> Sequence[Command]:
            problem = await self._push(session, request, header)
            stored = None
            if self._config.store_reply_message_enable:
                stored = await self._stored(session, request, header, queue_id)
            told = stored
            if told is None and problem is None:
                told = SendMessageResponseHeader(msg_id=NOT_STORED_ID, queue_id=queue_id, queue_offset=0)
            code = ResponseCode.SUCCESS if problem is None else ResponseCode.SYSTEM_ERROR
            return [request.reply(code, header=told, ext=self._answer_ext, remark=problem)]

        return Later(answer)

    def _check_size(self, request: Command, header: SendHeader) -> None:
        if len(request.body) > self._body_size_max:
            raise RequestError(
                ResponseCode.MESSAGE_ILLEGAL,
                f"the body has {len(request.body)} bytes, more than maxMessageSize ({self._body_size_max}): reply less",
            )
        text = header.properties or ""
        if len(text) > PROPERTIES_SIZE_MAX_BYTES // 3 and len(text.encode()) > PROPERTIES_SIZE_MAX_BYTES:
            raise properties_too_large(len(text.encode()))

    # -- delivering ---------------------------------------------------------------------------------------------

    async def _push(self, session: Session, request: Command, header: SendHeader) -> str | None:
        """Hand the reply to the client that asked; None when it took it, else why not, in RocketMQ's words."""
        text = header.properties or ""
        client_id = prop.property_of(text, prop.REPLY_TO_CLIENT)
        if client_id is None:
            return f"reply message properties[{prop.REPLY_TO_CLIENT}] is null"
        member = self._members.producer_client(client_id)
        if member is None:
            problem = f"push reply message fail, channel of <{client_id}> not found."
            logger.warning("%s", problem)
            return problem
        command = Command(
            RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT,
            header=self._pushed_header(session, header, prop.with_property(text, prop.PUSH_REPLY_TIME, str(wall_ms()))),
            body=request.body,
        )
        try:
            told = await member.session.request(command, PUSH_SECONDS)
        except RemotingError as error:
            logger.warning("the reply of %s to client %s did not arrive: %s", session.peer, client_id, error)
        else:
            if told.code == ResponseCode.SUCCESS:
                return None
            logger.warning("client %s does not take the reply of %s: %s", client_id, session.peer, told.remark)
        return f"push reply message to {client_id}fail."

    def _pushed_header(self, session: Session, header: SendHeader, properties: str) -> ReplyMessageRequestHeader:
        return ReplyMessageRequestHeader(
            producer_group=header.producer_group,
            topic=header.topic,
            default_topic=header.default_topic,
            default_topic_queue_nums=header.default_topic_queue_nums,
            queue_id=header.queue_id,
            sys_flag=header.sys_flag,
            born_timestamp=header.born_timestamp,
            flag=header.flag,
            properties=properties,
            reconsume_times=header.reconsume_times,
            unit_mode=header.unit_mode or False,
            born_host=host_text(session.peer_host),
            store_host=host_text(self._store_host),
            store_timestamp=wall_ms(),
        )

    # -- storing ------------------------------------------------------------------------------------------------

    async def _stored(
        self, session: Session, request: Command, header: SendHeader, queue_id: int
    ) -> SendMessageResponseHeader | None:
        """Store the reply, with the durability that the store promises; None, with a line in the log, when it fails."""
        text = header.properties or ""
        message = NewMessage(
            header.topic,
            queue_id,
            request.body,
            text,
            header.flag,
            header.sys_flag & ~(BORN_HOST_V6 | STORE_HOST_V6),
            header.born_timestamp,
            session.peer_host,
            header.reconsume_times or 0,
            0,
            tags_code(prop.property_of(text, prop.TAGS)),
        )
        result = self._store.append([message])[0]
        problem = result.remark
        if result.status is AppendStatus.PUT_OK:
            try:
                if self._store.sync_flush and prop.flag_property(text, prop.WAIT, True):
                    await self._store.wait_durable(result.physical_offset + result.size_bytes)
                return SendMessageResponseHeader(
                    msg_id=encode_offset_id(self._store_host, result.physical_offset),
                    queue_id=queue_id,
                    queue_offset=result.queue_offset,
                )
            except StoreFailedError as error:
                problem = str(error)
        logger.warning("a reply from %s to %s is not stored: %s", session.peer, header.topic, problem)
        return None
