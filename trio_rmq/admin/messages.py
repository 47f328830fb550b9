"""Single messages: by the place an offset message id names, by key, and by the unique id its producer gave it.

Source: RocketMQ MQAdminImpl.viewMessage, queryMessage, queryMessageByUniqKey.
"""

from __future__ import annotations

from trio_rmq.admin.client import AdminClient
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.errors import ResponseError
from trio_rmq.wire import headers
from trio_rmq.wire import properties as prop
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.ids import decode_offset_id, host_text
from trio_rmq.wire.record import StoredMessage, decode_record, decode_records

QUERY_COUNT_MAX = 64
"""Most messages that a broker finds by key (maxMsgsNumBatch)."""
TIME_MAX_MS = 2**63 - 1
_UNIQUE_KEY_QUERY = {"_UNIQUE_KEY_QUERY": "true"}


async def view_message(admin: AdminClient, offset_message_id: str) -> ReceivedMessage:
    """The message at the place that the id names: a broker's address and an offset in its log.

    ProtocolError for a text that is no such id; RemotingError when nobody is at the address; ResponseError 1 when no
    message begins there, or no longer.  Its queue's broker name is the address when no name server knows that broker.
    """
    host, physical_offset = decode_offset_id(offset_message_id)
    address = host_text(host)
    brokers = (await admin.cluster_info()).broker_addr_table
    header = headers.ViewMessageRequestHeader(offset=physical_offset)
    answer = await admin.ask(admin.reachable(address), Command(RequestCode.VIEW_MESSAGE_BY_ID, header=header))
    name = next((name for name, data in brokers.items() if address in data.broker_addrs.values()), address)
    return _received(decode_record(answer.body), name)


async def query_by_key(
    admin: AdminClient,
    topic: str,
    key: str,
    *,
    max_count: int = QUERY_COUNT_MAX,
    begin_ms: int = 0,
    end_ms: int = TIME_MAX_MS,
) -> list[ReceivedMessage]:
    """The messages of a topic with a key, stored between two times (ms, both included), in the order of storing.

    Each master brings its newest, 64 at most; of all, the newest `max_count` are returned.  None: an empty list.
    RouteNotFoundError for an unknown topic; RemotingError or ResponseError when a master cannot say.
    """
    found = await _query(admin, topic, key, max_count, begin_ms, end_ms, None)
    named = [message for message in found if key in message.keys]
    return named[max(len(named) - max_count, 0) :]


async def query_by_unique_key(admin: AdminClient, topic: str, unique_key: str) -> list[ReceivedMessage]:
    """The messages whose producer gave them this id (`SendResult.message_id`), in the order of storing.

    More than one when a send was tried again though it had arrived, none when it is not kept; errors as of
    `query_by_key`.
    """
    found = await _query(admin, topic, unique_key, QUERY_COUNT_MAX, 0, TIME_MAX_MS, _UNIQUE_KEY_QUERY)
    return [message for message in found if message.properties.get(prop.UNIQUE_KEY) == unique_key]


async def _query(
    admin: AdminClient, topic: str, key: str, count: int, begin_ms: int, end_ms: int, ext: dict[str, str] | None
) -> list[ReceivedMessage]:
    """What the masters bring; those of RocketMQ compare keys by their hash only, so the caller looks again."""
    header = headers.QueryMessageRequestHeader(
        topic=topic, key=key, max_num=count, begin_timestamp=begin_ms, end_timestamp=end_ms
    )
    found: list[ReceivedMessage] = []
    for broker_name, address in (await admin.topic_masters(topic)).items():
        try:
            answer = await admin.ask(address, Command(RequestCode.QUERY_MESSAGE, header, ext))
        except ResponseError as error:
            if error.response_code != ResponseCode.QUERY_NOT_FOUND:
                raise
        else:
            found += [_received(stored, broker_name) for stored in decode_records(answer.body)]
    return sorted(found, key=lambda message: message.store_timestamp_ms)


def _received(stored: StoredMessage, broker_name: str) -> ReceivedMessage:
    queue = MessageQueue(topic=stored.topic, broker_name=broker_name, queue_id=stored.queue_id)
    return ReceivedMessage.from_record(stored, queue)
