"""What was delivered before a crash, beyond what the saved progress knows: found in the log, by the delivered copies.

A delivered copy of a timer or delayed message keeps the physical offset of the record that waited as its prepared
offset, which only transactions use otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire.record import CheckedRecord

LOG_BEHIND_MAX_BYTES = 64 * 1024 * 1024
"""Most of the log that a start after a crash has to look through for delivered copies, beyond a second's: a service
that has not delivered for longer first saves how far the log is."""

_RECORDS_A_BREATH = 2000


async def copies_since(
    store: MessageStore, log_offset: int, is_copy: Callable[[CheckedRecord], bool]
) -> frozenset[int]:
    """The physical offsets of the waiting records whose copies stand in the log from `log_offset` on."""
    found: set[int] = set()
    begin = max(log_offset, store.min_physical_offset)
    for count, record in enumerate(store.reader.records_from(begin)):
        if is_copy(record):
            found.add(record.prepared_transaction_offset)
        if count % _RECORDS_A_BREATH == 0:
            await trio.lowlevel.checkpoint()
    return frozenset(found)
