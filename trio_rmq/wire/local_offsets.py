"""The file in which a broadcasting consumer keeps its offsets: a map keyed by whole queues, as fastjson writes it.

Invariant: what is written equals Java's file byte for byte, but for the order of queues, which Java leaves to its hash
map.  Source: RocketMQ OffsetSerializeWrapper, LocalFileOffsetStore; files of Java's are in protocol/vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.stats import decode_reset_offset


def decode_local_offsets(data: bytes) -> dict[MessageQueue, int]:
    """The offset of each queue in the file's bytes; ProtocolError when they are no such file."""
    if not data.strip():
        raise ProtocolError("the file of local offsets is empty")
    return decode_reset_offset(data).offset_table


def encode_local_offsets(offsets: Mapping[MessageQueue, int]) -> bytes:
    """The file's bytes: tabs, a field a line."""
    entries = [
        b'{\n\t\t\t"brokerName":%s,\n\t\t\t"queueId":%d,\n\t\t\t"topic":%s\n\t\t}:%d'
        % (msgspec.json.encode(queue.broker_name), queue.queue_id, msgspec.json.encode(queue.topic), offsets[queue])
        for queue in sorted(offsets, key=lambda queue: queue.sort_key)
    ]
    table = b"{" + b",".join(entries) + b"\n\t}" if entries else b"{}"
    return b'{\n\t"offsetTable":' + table + b"\n}"
