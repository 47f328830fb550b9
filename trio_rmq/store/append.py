"""Appending: many messages, one write, their offsets at once.

All records of a call are built in memory, written in one call per file (a second file only when the first is full),
and only then become visible.  Between taking a queue offset and the write there is no await, so no other task sees a
number that is taken back when the disk has no room.

Invariants: store times never go back along the log; queue offsets have no gap, also after a refused message; a refused
message leaves no byte behind; entries come straight from memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from logging import getLogger

from trio_rmq.clock import wall_ms
from trio_rmq.errors import ProtocolError, StoreFailedError
from trio_rmq.limits import FRAME_SIZE_MAX_BYTES, PROPERTIES_SIZE_MAX_BYTES, TOPIC_LENGTH_MAX
from trio_rmq.store.commit_log import CommitLog, LogBusyError, LogFullError
from trio_rmq.store.consume_queue import ENTRY, ENTRY_SIZE_BYTES, ConsumeQueue
from trio_rmq.store.consume_queue_ext import is_address
from trio_rmq.store.consume_queues import ConsumeQueues
from trio_rmq.store.dispatch import DelayLevels
from trio_rmq.store.messages import AppendResult, AppendStatus, BatchResult, NewBatch, NewMessage
from trio_rmq.wire.checksum import crc32
from trio_rmq.wire.ids import Host
from trio_rmq.wire.record import (
    BLANK_SIZE_BYTES,
    MAGIC_V1,
    RECORD_SIZE_MIN_BYTES,
    encode_blank,
    encode_record,
    pack_head_v4,
    pack_shared_v4,
    record_size,
)
from trio_rmq.wire.sysflag import BORN_HOST_V6, STORE_HOST_V6, TRANSACTION_PREPARED

_log = getLogger(__name__)

Segment = tuple[int, list[bytes], int]
"""What goes into one log file: where it begins, its pieces, and how many entries there are with it and before it."""

Wrote = Callable[[int, list[ConsumeQueue], list[int]], None]
"""Told after each write: the end of the log; and of each new entry, in order, its queue and its tags code."""

BitMapOf = Callable[[str, bytes], bytes | None]
"""From a message's topic and stored properties: which filters are true of it, or None."""

_OK = AppendStatus.PUT_OK
_NO_QUEUES: dict[int, ConsumeQueue] = {}
_pack_entry = ENTRY.pack
_FIXED_BYTES = RECORD_SIZE_MIN_BYTES - 3
"""A record without body, topic, properties and the lengths of the last two."""

_RECORD_EXTRA_MAX_BYTES = RECORD_SIZE_MIN_BYTES + 24 + 1 + TOPIC_LENGTH_MAX
"""A record without body and properties, at most."""

_TEXT_UNIT_MAX_BYTES = 4
"""Of one character in UTF-8."""

_HOSTS_V6 = BORN_HOST_V6 | STORE_HOST_V6
_NO_ENTRY = TRANSACTION_PREPARED
"""The bit that prepared and rolled-back records have, which get neither a queue offset nor an entry."""


class Appender:
    """Builds records, assigns offsets and writes; `wrote` is told after each write.

    `failed` is told the reason when the log cannot be trusted any more; from then on `refuse` answers everything.
    """

    def __init__(
        self,
        log: CommitLog,
        queues: ConsumeQueues,
        delays: DelayLevels,
        *,
        store_host: Host,
        body_size_max: int,
        wrote: Wrote,
        failed: Callable[[StoreFailedError], None],
    ) -> None:
        self._log = log
        self._queues = queues
        self._delays = delays
        self._wrote = wrote
        self._failed = failed
        self._body_size_max = body_size_max
        self.store_host = store_host
        self._full = False  # said once in the log, until a write succeeds
        self.bit_map_of: BitMapOf | None = None
        """Makes the bit maps of queues with extension files; None: they have none."""
        self.refusal: str | None = None
        """When set, the sentence with which every message is refused."""
        self.last_time_ms = 0
        """Store time of the newest record."""
        self.messages = 0
        self.bytes = 0
        self.calls = 0

    def append(
        self,
        messages: Sequence[NewMessage],
        *,
        together: bool = False,
        accepted: bool = False,
        others: Sequence[ConsumeQueue] = (),
    ) -> list[AppendResult]:
        """Append in order; one result a message.

        With `together` all are stored in one file or none is.  With `accepted` bodies may have any size: they were
        stored here before.  With `others`, `messages` is one message, which gets its next entry in each of them as
        well.  Written when this returns, and visible unless the store waits for the sync.
        """
        if self.refusal is not None:
            return self._refuse_all(messages, AppendStatus.SERVICE_NOT_AVAILABLE, self.refusal)
        log = self._log
        file_size = log.files.file_size
        position = segment_start = log.position
        file_end = position - position % file_size + file_size
        parts: list[bytes] = []
        queues: list[ConsumeQueue] = []
        codes: list[int] = []
        results: list[AppendResult] = []
        earlier: list[Segment] = []
        if together and _size_bound(messages) > file_end - position:
            fits = self._check_together(messages, file_end - position)
            if isinstance(fits, list):
                return fits
            if not fits:
                earlier.append((segment_start, [encode_blank(file_end - position)], 0))
                position = segment_start = file_end
                file_end += file_size
        wall = wall_ms()
        now = wall if wall > self.last_time_ms else self.last_time_ms
        by_topic = self._queues.by_topic
        topic, find = "", _NO_QUEUES.get
        body_size_max = FRAME_SIZE_MAX_BYTES if accepted else self._body_size_max
        room_end = file_end - BLANK_SIZE_BYTES
        store_address, store_port = self.store_host
        born_host: Host | None = None
        born_ms = sys_flag = reconsume_times = prepared_offset = 0
        is_v4, has_entry, shared = False, True, b""
        for message in messages:  # the hot loop: a call more in it costs more than most of what it does
            properties = message.properties
            if isinstance(properties, str):
                properties = properties.encode()
            properties_size = len(properties)
            body = message.body
            body_size = len(body)
            if message.topic != topic:
                topic = message.topic
                find = by_topic.get(topic, _NO_QUEUES).get
            queue = find(message.queue_id) or self._new_queue(topic, message.queue_id)
            if (
                queue is None
                or body_size > body_size_max
                or properties_size > PROPERTIES_SIZE_MAX_BYTES
                or 0 in properties  # recovery knows a torn record by it: no checksum covers the properties
            ):
                illegal = self._illegal(message.topic, message.queue_id, message.body, properties)
                if together:
                    self._take_back(queues, 0)
                    return self._refuse_all(messages, illegal.status, illegal.remark)
                results.append(illegal)
                continue
            if properties_size != queue.properties_size:
                queue.note_properties_size(properties_size)
            try:
                if (
                    message.born_timestamp_ms != born_ms
                    or message.born_host is not born_host  # messages of one connection share it
                    or message.sys_flag != sys_flag
                    or message.reconsume_times != reconsume_times
                    or message.prepared_transaction_offset != prepared_offset
                ):
                    born_ms, born_host, sys_flag = message.born_timestamp_ms, message.born_host, message.sys_flag
                    reconsume_times, prepared_offset = message.reconsume_times, message.prepared_transaction_offset
                    has_entry = not sys_flag & _NO_ENTRY
                    address, port = born_host
                    is_v4 = len(address) == len(store_address) == 4 and not sys_flag & _HOSTS_V6
                    if is_v4:
                        shared = pack_shared_v4(
                            sys_flag, born_ms, address, port, now, store_address, store_port, reconsume_times,
                            prepared_offset,
                        )  # fmt: skip
                if is_v4:
                    size = queue.record_rest_bytes + body_size
                else:
                    size = record_size(queue.topic_field, body, properties, message.born_host, self.store_host)
                end = position + size
                if end > room_end:
                    if size + BLANK_SIZE_BYTES > file_size:
                        results.append(self._too_long(size))
                        continue
                    parts.append(encode_blank(file_end - position))
                    earlier.append((segment_start, parts, len(queues)))
                    parts = []
                    position = segment_start = file_end
                    file_end += file_size
                    room_end, end = file_end - BLANK_SIZE_BYTES, position + size
                queue_offset = queue.next_offset if has_entry else 0
                if is_v4:
                    parts += (
                        pack_head_v4(
                            size,
                            MAGIC_V1,
                            crc32(body) & 0x7FFFFFFF,
                            message.queue_id,
                            message.flag,
                            queue_offset,
                            position,
                            shared,
                            body_size,
                        ),
                        body,
                        queue.record_middle,
                        properties,
                    )
                else:
                    parts.append(self._encode_v6(queue, queue_offset, position, now, message, properties))
            except (struct.error, ProtocolError) as error:
                remark = f"a field of the message does not fit the stored record: {error}"
                if together:
                    self._take_back(queues, 0)
                    return self._refuse_all(messages, AppendStatus.MESSAGE_ILLEGAL, remark)
                results.append(AppendResult(AppendStatus.MESSAGE_ILLEGAL, remark=remark))
                born_host = None  # what it has is packed for nobody after it
                continue
            if has_entry:
                code = entry_code = message.tags_code
                if not queue.is_plain:
                    code, entry_code = self._codes(queue, properties, now, wall, code)
                tail = queue.tail
                if not tail:
                    self._queues.unwritten[queue] = None
                tail += _pack_entry(position, size, entry_code)
                queue.next_offset = queue_offset + 1
                queues.append(queue)
                codes.append(code)
            results.append(AppendResult(_OK, position, size, queue_offset, now))
            position = end
        if not parts and not earlier:
            return results
        if others:
            self._enter(others, results[0], messages[0].tags_code, queues, codes)
        self.last_time_ms = now
        self.calls += 1
        failure = self._write([*earlier, (segment_start, parts, len(queues))], queues, codes)
        if failure is not None:
            self._refuse_from(log.position, results, failure)
        return results

    def append_batch(self, batch: NewBatch) -> BatchResult:
        """Append all messages of a batch back to back in one file, or none.

        Written when this returns, and visible unless the store waits for the sync.
        """
        if self.refusal is not None:
            return BatchResult(AppendStatus.SERVICE_NOT_AVAILABLE, remark=self.refusal)
        queue = self._queues.table.get((batch.topic, batch.queue_id)) or self._new_queue(batch.topic, batch.queue_id)
        store_address, store_port = self.store_host
        born_address, born_port = batch.born_host
        if (
            queue is None
            or not queue.is_plain
            or not len(born_address) == len(store_address) == 4
            or batch.sys_flag & (_HOSTS_V6 | _NO_ENTRY)
        ):
            return _joined(self.append(batch.messages(), together=True))
        log = self._log
        items = batch.items
        total = len(items) * (_FIXED_BYTES + len(queue.topic_field) + 2)
        total += sum([len(body) + len(properties) for _, body, properties in items])
        segments: list[Segment] = []
        position = log.position
        if position + total + BLANK_SIZE_BYTES > log.file_end:
            if total + BLANK_SIZE_BYTES > log.files.file_size:
                return _joined([self._too_long(total)])
            segments.append((position, [encode_blank(log.file_end - position)], 0))
            position = log.file_end
        start = position
        now = max(wall_ms(), self.last_time_ms)
        first_offset = queue_offset = queue.next_offset
        queue_id, topic_field, body_size_max = queue.queue_id, queue.topic_field, self._body_size_max
        offsets: list[int] = []
        parts: list[bytes] = []
        entries: list[bytes] = []
        properties_size, middle = -1, b""
        try:
            shared = pack_shared_v4(
                batch.sys_flag, batch.born_timestamp_ms, born_address, born_port, now, store_address, store_port,
                batch.reconsume_times, 0,
            )  # fmt: skip
            for (flag, body, properties), code in zip(items, batch.tags_codes, strict=True):
                body_size = len(body)
                if len(properties) != properties_size:
                    properties_size = len(properties)
                    middle = topic_field + properties_size.to_bytes(2, "big")
                if body_size > body_size_max or properties_size > PROPERTIES_SIZE_MAX_BYTES or 0 in properties:
                    return _joined([self._illegal(batch.topic, queue_id, body, properties)])
                size = _FIXED_BYTES + len(middle) + body_size + properties_size
                crc = crc32(body) & 0x7FFFFFFF
                parts += (
                    pack_head_v4(size, MAGIC_V1, crc, queue_id, flag, queue_offset, position, shared, body_size),
                    body,
                    middle,
                    properties,
                )
                entries.append(_pack_entry(position, size, code))
                offsets.append(position)
                position += size
                queue_offset += 1
        except (struct.error, OverflowError) as error:
            sentence = f"a field of the batch does not fit the stored record: {error}"
            return BatchResult(AppendStatus.MESSAGE_ILLEGAL, remark=sentence)
        if not queue.tail:
            self._queues.unwritten[queue] = None
        queue.tail += b"".join(entries)
        queue.next_offset = queue_offset
        self.last_time_ms = now
        self.calls += 1
        count = len(offsets)
        failure = self._write([*segments, (start, parts, count)], [queue] * count, [*batch.tags_codes])
        if failure is not None:
            return BatchResult(AppendStatus.SERVICE_NOT_AVAILABLE, remark=failure)
        return BatchResult(_OK, offsets, first_offset, position, now)

    def _codes(self, queue: ConsumeQueue, properties: bytes, now: int, wall: int, code: int) -> tuple[int, int]:
        """The message's tags code - on the delay topic its time of delivery - and what its entry holds for it."""
        if queue.is_delay:
            # By the clock, not by the store time, which stands still while a clock set back catches up.
            code = self._delays.deliver_time_ms(properties, wall) or code
        ext = queue.ext
        if ext is None or not ext.writes:
            return code, code
        bit_map_of = self.bit_map_of
        return code, ext.put(code, now, None if bit_map_of is None else bit_map_of(queue.topic, properties))

    def _enter(
        self,
        others: Sequence[ConsumeQueue],
        result: AppendResult,
        code: int,
        queues: list[ConsumeQueue],
        codes: list[int],
    ) -> None:
        """Put the entry of the message with this result into more queues than its own."""
        if result.status is _OK:
            for queue in others:
                if not queue.tail:
                    self._queues.unwritten[queue] = None
                queue.tail += _pack_entry(result.physical_offset, result.size_bytes, code)
                queue.next_offset += 1
                queues.append(queue)
                codes.append(code)
            self.messages -= len(others)  # it counts entries

    def _encode_v6(
        self, queue: ConsumeQueue, queue_offset: int, position: int, now: int, message: NewMessage, properties: bytes
    ) -> bytes:
        return encode_record(
            queue.topic_field,
            queue.queue_id,
            queue_offset,
            position,
            now,
            self.store_host,
            message.body,
            properties,
            message.flag,
            message.sys_flag,
            message.born_timestamp_ms,
            message.born_host,
            message.reconsume_times,
            message.prepared_transaction_offset,
        )

    def _write(self, segments: list[Segment], queues: list[ConsumeQueue], codes: list[int]) -> str | None:
        """Write each segment in its file and tell of what was written; when not all was, a sentence that says why."""
        log = self._log
        begin = log.position
        kept = 0
        remark: str | None = None
        try:
            for start, _, _ in segments:
                log.make_file(start)
            for start, parts, count in segments:
                log.position = start
                log.write(start, b"".join(parts))
                kept = count
        except LogFullError as error:
            self._take_back(queues, kept)
            busy = isinstance(error, LogBusyError)
            remark = str(error) if busy else f"the disk is full or refuses the write ({error}): make room"
            if not self._full:
                self._full = True
                _log.warning("senders are refused: %s", remark)
        except StoreFailedError as error:
            self._take_back(queues, kept)
            remark = str(error)
            self._failed(error)
        else:
            if self._full:
                self._full = False
                _log.warning("senders are served again: the disk takes the log's writes")
        if remark is not None:
            del queues[kept:], codes[kept:]
        self.messages += len(queues)
        self.bytes += log.position - begin
        self._wrote(log.position, queues, codes)
        return remark

    def _take_back(self, queues: list[ConsumeQueue], kept: int) -> None:
        for queue in queues[kept:]:
            queue.next_offset -= 1
            entry = queue.tail[-ENTRY_SIZE_BYTES:]
            del queue.tail[-ENTRY_SIZE_BYTES:]
            if queue.ext is not None and is_address(code := ENTRY.unpack(entry)[2]):
                queue.ext.take_back(code)
            if not queue.tail:
                self._queues.unwritten.pop(queue, None)

    def _refuse_from(self, position: int, results: list[AppendResult], remark: str) -> None:
        for index, result in enumerate(results):
            if result.physical_offset >= position:
                results[index] = AppendResult(AppendStatus.SERVICE_NOT_AVAILABLE, remark=remark)

    def _refuse_all(self, messages: Sequence[NewMessage], status: AppendStatus, remark: str) -> list[AppendResult]:
        return [AppendResult(status, remark=remark) for _ in messages]

    def _check_together(self, messages: Sequence[NewMessage], room: int) -> bool | list[AppendResult]:
        """Whether all fit the current file; or, when any is illegal or no file can hold them, the refusals."""
        total = BLANK_SIZE_BYTES
        for message in messages:
            properties = message.properties.encode() if isinstance(message.properties, str) else message.properties
            queue = self._queues.table.get((message.topic, message.queue_id)) or self._new_queue(
                message.topic, message.queue_id
            )
            if (
                queue is None
                or len(message.body) > self._body_size_max
                or len(properties) > PROPERTIES_SIZE_MAX_BYTES
                or 0 in properties
            ):
                refusal = self._illegal(message.topic, message.queue_id, message.body, properties)
                return self._refuse_all(messages, refusal.status, refusal.remark)
            total += record_size(queue.topic_field, message.body, properties, message.born_host, self.store_host)
        if total > self._log.files.file_size:
            refusal = self._too_long(total - BLANK_SIZE_BYTES)
            return self._refuse_all(messages, refusal.status, refusal.remark)
        return total <= room

    def _new_queue(self, topic: str, queue_id: int) -> ConsumeQueue | None:
        """The queue of a message that is the first of it; None when its topic cannot name a folder or a record."""
        if not topic or len(topic.encode()) > TOPIC_LENGTH_MAX or "/" in topic or "\0" in topic or topic in (".", ".."):
            return None
        return None if queue_id < 0 else self._queues.make(topic, queue_id)

    def _illegal(self, topic: str, queue_id: int, body: bytes, properties: bytes) -> AppendResult:
        if len(properties) > PROPERTIES_SIZE_MAX_BYTES:
            return AppendResult(
                AppendStatus.PROPERTIES_SIZE_EXCEEDED,
                remark=f"the properties have {len(properties)} bytes, {PROPERTIES_SIZE_MAX_BYTES} is the most",
            )
        if 0 in properties:
            remark = (
                "the properties have a zero byte, which no stored property may have: encode it, or put it in the body"
            )
            return AppendResult(AppendStatus.MESSAGE_ILLEGAL, remark=remark)
        if len(body) > self._body_size_max:
            remark = f"the body has {len(body)} bytes, maxMessageSize is {self._body_size_max}"
        else:
            remark = f"topic {topic[:200]!r} with queue {queue_id} cannot be stored"
        return AppendResult(AppendStatus.MESSAGE_ILLEGAL, remark=remark)

    def _too_long(self, size: int) -> AppendResult:
        return AppendResult(
            AppendStatus.MESSAGE_ILLEGAL,
            remark=f"{size} bytes of records do not fit a log file of {self._log.files.file_size} bytes",
        )


def _size_bound(messages: Sequence[NewMessage]) -> int:
    """At least what the records of `messages` and a filler take; told without looking at each closely."""
    sizes = sum([len(message.body) + _TEXT_UNIT_MAX_BYTES * len(message.properties) for message in messages])
    return BLANK_SIZE_BYTES + len(messages) * _RECORD_EXTRA_MAX_BYTES + sizes


def _joined(results: Sequence[AppendResult]) -> BatchResult:
    """The results of messages that were appended together, or of one for all, as those of a batch."""
    first, last = results[0], results[-1]
    if first.status is not _OK:
        return BatchResult(first.status, remark=first.remark)
    offsets = [result.physical_offset for result in results]
    end = last.physical_offset + last.size_bytes
    return BatchResult(_OK, offsets, first.queue_offset, end, first.store_timestamp_ms)
