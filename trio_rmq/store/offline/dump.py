"""`dump`: records of a store as JSON objects, found by any of the ways in which a broker finds them.

Names are those of RocketMQ's MessageExt.  A body that is UTF-8 text stands there as text, any other as base64; neither
is decompressed.  What is damaged is said in its place, so that a dump of a range has no silent hole.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator

import msgspec

from trio_rmq.errors import ProtocolError, StoreError
from trio_rmq.store.consume_queue import ENTRY, ENTRY_SIZE_BYTES, FILLER_SIZE
from trio_rmq.store.index_keys import key_hash, keys_of
from trio_rmq.store.offline.findings import Findings
from trio_rmq.store.offline.folder import Progress, StoreFolder
from trio_rmq.store.offline.log_check import LogCheck
from trio_rmq.wire.ids import decode_offset_id, host_text
from trio_rmq.wire.record import RECORD_SIZE_MIN_BYTES, StoredMessage, decode_record

_DAMAGE_KINDS = ("record", "tail")


def as_json(record: StoredMessage) -> bytes:
    """One record as a JSON object on one line, without a line end."""
    body: dict[str, object]
    try:
        body = {"body": record.body.decode()}
    except UnicodeDecodeError:
        body = {"bodyBase64": b64encode(record.body).decode()}
    return msgspec.json.encode(
        {
            "topic": record.topic,
            "queueId": record.queue_id,
            "queueOffset": record.queue_offset,
            "commitLogOffset": record.physical_offset,
            "storeSize": record.size_bytes,
            "msgId": record.unique_key,
            "offsetMsgId": record.offset_message_id,
            "storeTimestamp": record.store_timestamp_ms,
            "storeHost": host_text(record.store_host),
            "bornTimestamp": record.born_timestamp_ms,
            "bornHost": host_text(record.born_host),
            "flag": record.flag,
            "sysFlag": record.sys_flag,
            "reconsumeTimes": record.reconsume_times,
            "preparedTransactionOffset": record.prepared_transaction_offset,
            "bodyCRC": record.body_crc,
            "properties": record.property_map(),
            **body,
        }
    )


class Dump:
    """Looks records up in `folder`.  Every method raises StoreError, which says why, for a record that is not there."""

    def __init__(self, folder: StoreFolder, progress: Progress | None = None) -> None:
        self._folder = folder
        self._progress = progress

    def at(self, physical_offset: int) -> StoredMessage:
        """The record that begins at a physical offset."""
        files = self._folder.log_files
        start = files.locate(physical_offset)
        if start is None:
            raise StoreError(f"the log has nothing at {physical_offset}: it reaches from {files.start} to {files.end}")
        room = start + files.file_size - physical_offset
        size = int.from_bytes(files.read(physical_offset, 4), "big")
        if not RECORD_SIZE_MIN_BYTES <= size <= room:
            raise StoreError(f"no record begins at {physical_offset}: {self._hint(physical_offset)}")
        try:
            record = decode_record(files.read(physical_offset, size), check_crc=True)
        except ProtocolError as error:
            raise StoreError(f"what stands at {physical_offset} is no whole record: {error}") from None
        if record.physical_offset != physical_offset:
            raise StoreError(f"the record at {physical_offset} says that it stands at {record.physical_offset}")
        return record

    def _hint(self, physical_offset: int) -> str:
        place = LogCheck(self._folder, Findings()).place_from(physical_offset)
        return "no later one either" if place is None else f"the next one is at {place}"

    def by_id(self, offset_message_id: str) -> StoredMessage:
        """The record that an offset message id names; its store host must be the id's."""
        try:
            host, physical_offset = decode_offset_id(offset_message_id)
        except ProtocolError as error:
            raise StoreError(f"{offset_message_id} is no offset message id: {error}") from None
        record = self.at(physical_offset)
        if record.store_host != host:
            raise StoreError(
                f"the record at {physical_offset} was stored by {host_text(record.store_host)}, "
                f"the id names one of {host_text(host)}"
            )
        return record

    def in_queue(self, topic: str, queue_id: int, offset: int, count: int | None) -> Iterator[bytes]:
        """JSON of the records with these queue offsets, at most `count` (None: all there are)."""
        files = self._folder.queues.get((topic, queue_id))
        if files is None:
            raise StoreError(f"the store has no queue {queue_id} of topic {topic}")
        done = 0
        while count is None or done < count:
            data = files.read(offset * ENTRY_SIZE_BYTES, ENTRY_SIZE_BYTES)
            physical, size, _ = ENTRY.unpack(data) if len(data) == ENTRY_SIZE_BYTES else (0, 0, 0)
            if size in (0, FILLER_SIZE):
                if not done:
                    raise StoreError(f"queue {queue_id} of topic {topic} has no message with offset {offset}")
                return
            if count == 1:
                yield as_json(self.at(physical))
                return
            yield self._line(physical, size)
            offset += 1
            done += 1

    def _line(self, physical: int, size: int) -> bytes:
        try:
            return as_json(self.at(physical))
        except StoreError as error:
            return _damaged(physical, size, str(error))

    def in_log(self, begin: int, count: int | None) -> Iterator[bytes]:
        """JSON of the records from the first one at `begin` or later, at most `count` (None: all)."""
        findings = Findings()
        log = LogCheck(self._folder, findings, self._progress)
        first = log.place_from(begin)
        if first is None:
            raise StoreError(f"the log has no record at {begin} or later")
        told = done = 0
        for _, record in log.scan(first):
            for finding in findings.kept[told:]:
                if finding.kind in _DAMAGE_KINDS:
                    yield _damaged(finding.physical_offset or 0, finding.size_bytes, finding.what)
            told = len(findings.kept)
            if done == count:
                return
            yield as_json(record)
            done += 1
        if done != count:
            for finding in findings.kept[told:]:
                if finding.kind in _DAMAGE_KINDS:
                    yield _damaged(finding.physical_offset or 0, finding.size_bytes, finding.what)

    def by_key(self, topic: str, key: str, count: int | None) -> Iterator[bytes]:
        """JSON of the records of `topic` with this unique key or key, the newest first.

        The index finds most; what it does not hold yet is looked for in the log.
        """
        name, word = topic.encode(), key.encode()
        done = 0
        for record in self._with_key(name, word):
            if done == count:
                return
            yield as_json(record)
            done += 1
        if not done:
            raise StoreError(f"no message of topic {topic} has the key {key}")

    def _with_key(self, topic: bytes, key: bytes) -> Iterator[StoredMessage]:
        files = self._folder.index_files
        end = files[-1].header.end_physical if files and files[-1].header.count > 1 else self._folder.min_offset
        log = LogCheck(self._folder, Findings(), self._progress)
        begin = log.place_from(max(end, self._folder.min_offset))
        newest = [] if begin is None else [record for _, record in log.scan(begin) if _has(record, topic, key)]
        yield from reversed(newest)
        seen = {record.physical_offset for record in newest}
        wanted = key_hash(topic, key)
        for file in reversed(files):
            for item in file.chain(wanted, 0):
                if item is None or item[0] in seen or item[0] < self._folder.min_offset:
                    continue
                seen.add(item[0])
                try:
                    record = self.at(item[0])
                except StoreError:  # an index item may lead anywhere; `verify` tells
                    continue
                if _has(record, topic, key):
                    yield record


def _has(record: StoredMessage, topic: bytes, key: bytes) -> bool:
    return record.topic.encode() == topic and key in keys_of(record.properties)


def _damaged(physical_offset: int, size_bytes: int, reason: str) -> bytes:
    return msgspec.json.encode({"commitLogOffset": physical_offset, "storeSize": size_bytes, "damaged": reason})
