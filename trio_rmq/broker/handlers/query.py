"""Single messages: by key and unique key QUERY_MESSAGE (12), by where they are VIEW_MESSAGE_BY_ID (33).

Source: RocketMQ QueryMessageProcessor, DefaultMessageStore.queryMessage (4.9).
"""

from __future__ import annotations

from collections.abc import Sequence

from trio_rmq.errors import RequestError
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import QueryMessageRequestHeader, QueryMessageResponseHeader, ViewMessageRequestHeader

_UNIQUE_KEY_QUERY = "_UNIQUE_KEY_QUERY"
"""The request's extra field that says `true` when the key is a unique key: then maxNum does not count."""


class QueryHandlers:
    """Looks messages up; a query by unique key is answered with at most `unique_key_count_max` messages."""

    def __init__(self, store: MessageStore, unique_key_count_max: int = 32) -> None:
        self._store = store
        self._unique_key_count_max = unique_key_count_max

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.QUERY_MESSAGE, self.query)
        table.register(RequestCode.VIEW_MESSAGE_BY_ID, self.view)

    def query(self, session: Session, request: Command) -> Later:
        """12: the newest messages with a key, in the order of the log as Apache answers them; 22 when there are none.

        Either answer says how far the index reaches.
        """
        header = request.decode_header(QueryMessageRequestHeader)
        max_count = header.max_num
        if request.ext_fields().get(_UNIQUE_KEY_QUERY) == "true":
            max_count = self._unique_key_count_max

        async def answer() -> Sequence[Command]:
            found = await self._store.query(
                header.topic,
                header.key,
                max_count=max_count,
                begin_ms=header.begin_timestamp,
                end_ms=header.end_timestamp,
            )
            reach = QueryMessageResponseHeader(
                index_last_update_timestamp=found.last_update_timestamp_ms,
                index_last_update_phyoffset=found.last_update_physical_offset,
            )
            if found.records:
                return [request.reply(header=reach, body=b"".join(reversed(found.records)))]
            remark = "can not find message, maybe time range not correct"
            return [request.reply(ResponseCode.QUERY_NOT_FOUND, header=reach, remark=remark)]

        return Later(answer)

    def view(self, session: Session, request: Command) -> Command:
        """33: the record at a physical offset, as it is stored; 1 when none begins there."""
        offset = request.decode_header(ViewMessageRequestHeader).offset
        record = self._store.record_at(offset) if offset >= 0 else None
        if record is None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"can not find message by the offset, {offset}")
        return request.reply(body=record)
