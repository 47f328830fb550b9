"""What was delivered before a crash, beyond what the saved progress knows: found in the log, by the delivered copies.

A delivered copy of a timer or delayed message keeps the physical offset of the record that waited as its prepared
offset, which only transactions use otherwise.
"""

from __future__ import annotations

import trio

from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire import properties as prop
from trio_rmq.wire.properties import property_of_bytes

LOG_BEHIND_MAX_BYTES = 64 * 1024 * 1024
"""Most of the log that a start after a crash has to look through for delivered copies, beyond a second's: a service
that has not delivered for longer first saves how far the log is."""

_RECORDS_A_BREATH = 2000
_REAL_TOPIC = prop.REAL_TOPIC.encode()


async def copies_since(store: MessageStore, log_offset: int, mark: str) -> frozenset[int]:
    """The physical offsets of the waiting records whose copies stand in the log from `log_offset` on.

    A copy has the property `mark` and stands in the topic that it waited for: what was made of a copy later, a dead
    letter say, has its properties too.
    """
    name = mark.encode()
    found: set[int] = set()
    begin = max(log_offset, store.min_physical_offset)
    for count, record in enumerate(store.reader.records_from(begin)):
        if (
            name in record.properties
            and property_of_bytes(record.properties, name) is not None
            and property_of_bytes(record.properties, _REAL_TOPIC) == record.topic.encode()
        ):
            found.add(record.prepared_transaction_offset)
        if count % _RECORDS_A_BREATH == 0:
            await trio.lowlevel.checkpoint()
    return frozenset(found)
