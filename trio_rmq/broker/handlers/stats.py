"""VIEW_BROKER_STATS_DATA (315): one figure of one topic or group over the last minute, hour and day."""

from __future__ import annotations

from trio_rmq.broker.stats import BrokerStats
from trio_rmq.errors import RequestError
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.session import Session
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.consumer_stats import encode_stats_data


class StatsHandlers:
    """Shows the broker's figures."""

    def __init__(self, stats: BrokerStats) -> None:
        self._stats = stats

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.VIEW_BROKER_STATS_DATA, self.view)

    def view(self, session: Session, request: Command) -> Command:
        """315: a figure by RocketMQ's name and key; 1 when nothing was counted for it."""
        header = request.decode_header(headers.ViewBrokerStatsDataRequestHeader)
        figures = self._stats.figures(header.stats_name, header.stats_key)
        if figures is None:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR, f"The stats <{header.stats_name}> <{header.stats_key}> not exist"
            )
        return request.reply(body=encode_stats_data(figures))
