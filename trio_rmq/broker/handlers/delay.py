"""GET_ALL_DELAY_OFFSET (45): how far each delay level is; slaves ask their master.  Source: AdminBrokerProcessor."""

from __future__ import annotations

from trio_rmq.broker.delay import DelayOffsetTable
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.session import Session
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command


class DelayHandlers:
    """Answers from the table that is saved: its offsets never pass a message whose delivered copy is not synced."""

    def __init__(self, table: DelayOffsetTable) -> None:
        self._table = table

    def register(self, table: HandlerTable) -> None:
        """Put the handler into `table`."""
        table.register(RequestCode.GET_ALL_DELAY_OFFSET, self.all_offsets)

    def all_offsets(self, session: Session, request: Command) -> Command:
        """45: level to offset, as compact JSON."""
        return request.reply(body=self._table.encode(pretty=False))
