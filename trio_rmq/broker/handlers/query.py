"""Single messages by where they are: VIEW_MESSAGE_BY_ID (33).  Source: RocketMQ QueryMessageProcessor (4.9)."""

from __future__ import annotations

from trio_rmq.errors import RequestError
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import ViewMessageRequestHeader


class QueryHandlers:
    """Looks messages up."""

    def __init__(self, store: MessageStore) -> None:
        self._store = store

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.VIEW_MESSAGE_BY_ID, self.view)

    def view(self, session: Session, request: Command) -> Command:
        """33: the record at a physical offset, as it is stored; 1 when none begins there."""
        offset = request.decode_header(ViewMessageRequestHeader).offset
        record = self._store.record_at(offset) if offset >= 0 else None
        if record is None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"can not find message by the offset, {offset}")
        return request.reply(body=record)
