"""Queue assignment by the broker (5.x): who consumes which queue, and whether by pull or by pop.

Fields stand in the order of their wire names, as fastjson writes them.  Source: RocketMQ QueryAssignmentRequestBody,
QueryAssignmentResponseBody, MessageQueueAssignment, SetMessageRequestModeRequestBody,
MessageRequestModeSerializeWrapper.
"""

from __future__ import annotations

import msgspec

from trio_rmq.wire.fastjson import BodyReader, encode_fastjson, encode_json, shown, shown_dict
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.heartbeat import CLUSTERING

PULL, POP = "PULL", "POP"
"""How a client gets the messages of a queue."""


class QueryAssignmentRequestBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Which queues of a topic a client is to consume; the strategy by its name at the broker (AVG, AVG_BY_CIRCLE)."""

    client_id: str = shown("")
    consumer_group: str = shown("")
    message_model: str = shown(CLUSTERING)
    strategy_name: str | None = None
    topic: str = shown("")


class MessageQueueAssignment(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One queue to consume, and how."""

    attachments: dict[str, str] | None = None
    message_queue: MessageQueue = msgspec.field(default_factory=MessageQueue)
    mode: str = shown(PULL)


class QueryAssignmentResponseBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The queues: an empty list takes all away, none leaves the client what it has."""

    message_queue_assignments: list[MessageQueueAssignment] | None = None


class SetMessageRequestModeRequestBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """How a group gets the messages of a topic."""

    consumer_group: str = shown("")
    mode: str = shown(PULL)
    pop_share_queue_num: int = shown(0)
    topic: str = shown("")


class MessageRequestModes(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """All that were set, by topic and group; also the content of messageRequestMode.json."""

    message_request_mode_map: dict[str, dict[str, SetMessageRequestModeRequestBody]] = shown_dict()


_query = BodyReader(QueryAssignmentRequestBody)
_answer = BodyReader(QueryAssignmentResponseBody)
_mode = BodyReader(SetMessageRequestModeRequestBody)
_modes = BodyReader(MessageRequestModes)


def decode_assignment_query(data: bytes) -> QueryAssignmentRequestBody:
    """The body of QUERY_ASSIGNMENT; ProtocolError when it is none."""
    return _query.decode(data)


def encode_assignment_query(query: QueryAssignmentRequestBody) -> bytes:
    """The body of QUERY_ASSIGNMENT as JSON."""
    return encode_json(query)


def decode_assignments(data: bytes) -> QueryAssignmentResponseBody:
    """The answer to QUERY_ASSIGNMENT; ProtocolError when it is none."""
    return _answer.decode(data)


def encode_assignments(answer: QueryAssignmentResponseBody) -> bytes:
    """The answer to QUERY_ASSIGNMENT as JSON."""
    return encode_json(answer)


def decode_request_mode(data: bytes) -> SetMessageRequestModeRequestBody:
    """The body of SET_MESSAGE_REQUEST_MODE; ProtocolError when it is none."""
    return _mode.decode(data)


def encode_request_mode(mode: SetMessageRequestModeRequestBody) -> bytes:
    """The body of SET_MESSAGE_REQUEST_MODE as JSON."""
    return encode_json(mode)


def decode_request_modes(data: bytes) -> MessageRequestModes:
    """All modes, on the wire or in their file; ProtocolError when they are none."""
    return _modes.decode(data)


def encode_request_modes(modes: MessageRequestModes, *, pretty: bool = False) -> bytes:
    """All modes as JSON; `pretty` as they stand in messageRequestMode.json."""
    return encode_fastjson(modes, pretty=True) if pretty else encode_json(modes)
