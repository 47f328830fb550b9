"""Replies: the message that answers a request, made by whoever consumed it and sent like any other.

A request carries three properties for it: CORRELATION_ID joins the two, REPLY_TO_CLIENT is the client that asked, TTL
how long it waits.  The reply carries them back to the reply topic of the request's cluster; whichever broker gets it
pushes it to that client.  Source: RocketMQ MessageUtil.createReplyMessage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trio_rmq.client.message import Message, ReceivedMessage
from trio_rmq.errors import ClientError
from trio_rmq.wire import properties as prop

REPLY_SUFFIX = "_REPLY_TOPIC"


@dataclass(slots=True)
class ReplyMessage(Message):
    """A message that answers a request: made by `reply_to`, sent with `Producer.send` or `send_oneway`."""

    own_properties: Mapping[str, str] = field(default_factory=dict)
    """RocketMQ's properties that lead it to who asked."""
    first_broker: str = ""
    """The broker that had the request: it knows who asked, so it is tried first."""


def reply_topic(cluster: str) -> str:
    """The topic of replies to requests that were stored in this cluster."""
    return cluster + REPLY_SUFFIX


def reply_to(
    request: ReceivedMessage,
    body: bytes,
    *,
    tags: str | None = None,
    keys: str | Iterable[str] | None = None,
    properties: Mapping[str, str] | None = None,
) -> ReplyMessage:
    """The answer to `request`, to be sent by any producer; ClientError when the message asks for no answer."""
    known = request.properties
    cluster = known.get(prop.CLUSTER)
    missing = [name for name in (prop.CORRELATION_ID, prop.REPLY_TO_CLIENT) if name not in known]
    if missing:
        raise ClientError(
            f"the message {request.message_id} is no request, it has no {' and no '.join(missing)}: reply only to what "
            "Producer.request sent"
        )
    if cluster is None:
        raise ClientError(
            f"the request {request.message_id} does not say in which cluster it was stored: its broker must be "
            "RocketMQ 4.7 or newer"
        )
    own = {prop.MSG_TYPE: prop.REPLY}
    own |= {name: known[name] for name in (prop.CORRELATION_ID, prop.REPLY_TO_CLIENT, prop.TTL) if name in known}
    return ReplyMessage(
        reply_topic(cluster), body, tags, keys, properties or {}, own_properties=own,
        first_broker=request.queue.broker_name,
    )  # fmt: skip
