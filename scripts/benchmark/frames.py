"""The requests of a run as bytes: encoded once, joined, with the place where each unit begins.

A unit is what the client sends as one: a remoting frame, or a WebSocket message with several commands.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trio_rmq.wire.batch import BatchItem, encode_batch
from trio_rmq.wire.cbor_codec import encode_commands
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.frame import encode_frame
from trio_rmq.wire.headers import PullMessageRequestHeader, SendMessageRequestHeaderV2

GROUP = "BenchmarkGroup"
PULL_COUNT = 32
BORN_MS = 1_700_000_000_000

_PULL_SUBSCRIPTION_IN_REQUEST = 4
_WEBSOCKET_BINARY = 0x82
_MASKED = 0x80


@dataclass(frozen=True)
class Units:
    """`data` holds the units back to back; unit i is data[starts[i]:starts[i + 1]] and asks for `answers` answers,
    each of which settles `messages` messages.
    """

    data: bytes
    starts: Sequence[int]
    answers: int
    messages: int

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.starts) - 1


def send_command(
    topic: str, queue_id: int, number: int, size: int, batch: int, serialize_type: SerializeType
) -> Command:
    """A send as a client of our days makes it: short field names, a unique id, WAIT."""
    unique = f"7F0000010A2B18B4AAC2{number & 0xFFFFFFFF:012X}"
    properties = f"UNIQ_KEY\x01{unique}\x02WAIT\x01true\x02"
    body = (b"%010d" % number * (size // 10 + 1))[:size]
    if batch > 1:
        items = [BatchItem(0, body, f"UNIQ_KEY\x01{unique[:-4]}{item:04X}\x02".encode()) for item in range(batch)]
        body = encode_batch(items)
        properties = ""
    header = SendMessageRequestHeaderV2(
        producer_group=GROUP,
        topic=topic,
        default_topic="TBW102",
        default_topic_queue_nums=8,
        queue_id=queue_id,
        sys_flag=0,
        born_timestamp=BORN_MS + number,
        flag=0,
        properties=properties,
        reconsume_times=0,
        unit_mode=False,
        batch=batch > 1,
    )
    code = RequestCode.SEND_BATCH_MESSAGE if batch > 1 else RequestCode.SEND_MESSAGE_V2
    return Command(code, header=header, body=body, opaque=number, serialize_type=serialize_type)


def pull_command(topic: str, queue_id: int, offset: int, number: int, serialize_type: SerializeType) -> Command:
    """A pull of 32 with its subscription in the request, not held when there is nothing."""
    header = PullMessageRequestHeader(
        consumer_group=GROUP,
        topic=topic,
        queue_id=queue_id,
        queue_offset=offset,
        max_msg_nums=PULL_COUNT,
        sys_flag=_PULL_SUBSCRIPTION_IN_REQUEST,
        commit_offset=0,
        suspend_timeout_millis=0,
        subscription="*",
        sub_version=0,
        expression_type="TAG",
    )
    return Command(RequestCode.PULL_MESSAGE, header=header, opaque=number, serialize_type=serialize_type)


def encode_units(
    command_of: Callable[[int], Command], count: int, *, websocket: bool, per_unit: int, messages: int
) -> Units:
    """`count` units of `per_unit` commands each; over TCP a unit is one frame."""
    parts: list[bytes] = []
    starts = [0]
    for unit in range(count):
        if websocket:
            payload = encode_commands([command_of(unit * per_unit + index) for index in range(per_unit)])
            part = websocket_message(payload)
        else:
            part = b"".join(encode_frame(command_of(unit * per_unit + index)) for index in range(per_unit))
        parts.append(part)
        starts.append(starts[-1] + len(part))
    return Units(b"".join(parts), starts, per_unit, messages)


def websocket_message(payload: bytes) -> bytes:
    """One masked binary message; the mask is zero, so that masking costs the load client nothing."""
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", _WEBSOCKET_BINARY, _MASKED | size)
    elif size < 65536:
        head = struct.pack(">BBH", _WEBSOCKET_BINARY, _MASKED | 126, size)
    else:
        head = struct.pack(">BBQ", _WEBSOCKET_BINARY, _MASKED | 127, size)
    return head + b"\0\0\0\0" + payload
