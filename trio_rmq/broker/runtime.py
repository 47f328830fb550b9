"""The broker's state as the flat table of texts that tools and dashboards read (GET_BROKER_RUNTIME_INFO).

Only figures that are kept are told; names and forms are RocketMQ's (BrokerStats, AdminBrokerProcessor).
"""

from __future__ import annotations

from trio_rmq.broker.delay import DelayService
from trio_rmq.broker.long_polling import HeldPulls
from trio_rmq.broker.loop_turns import LoopTurns
from trio_rmq.broker.stats import BrokerStats
from trio_rmq.broker.timers import Timers
from trio_rmq.clock import wall_ms
from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire.command import PROTOCOL_VERSION

VERSION_TEXT = "V4_9_8"
_GIB = 1024**3


class RuntimeInfo:
    """Makes the table; `boot_timestamp_ms` is when the broker began."""

    def __init__(
        self,
        store: MessageStore,
        held_pulls: HeldPulls,
        stats: BrokerStats,
        delay: DelayService,
        timers: Timers,
        turns: LoopTurns | None = None,
    ) -> None:
        self._store = store
        self._held_pulls = held_pulls
        self._stats = stats
        self._delay = delay
        self._timers = timers
        self._turns = turns
        self._boot_timestamp_ms = wall_ms()

    def table(self) -> dict[str, str]:
        """The state now."""
        statistics = self._store.statistics()
        free, total = self._store.space()
        used_ratio = f"{1 - free / total:.2f}" if total else "0.00"
        seconds = max(wall_ms() - self._boot_timestamp_ms, 0) // 1000
        unsynced = statistics.max_physical_offset - statistics.synced_offset
        appended = statistics.messages_appended
        return {
            "brokerVersion": str(PROTOCOL_VERSION),
            "brokerVersionDesc": VERSION_TEXT,
            "bootTimestamp": str(self._boot_timestamp_ms),
            "runtime": f"[ {seconds // 86400} days, {seconds // 3600 % 24} hours, "
            f"{seconds // 60 % 60} minutes, {seconds % 60} seconds ]",
            "commitLogMinOffset": str(statistics.min_physical_offset),
            "commitLogMaxOffset": str(statistics.max_physical_offset),
            "commitLogDiskRatio": used_ratio,
            "commitLogDirCapacity": f"Total : {total / _GIB:.1f} GiB, Free : {free / _GIB:.1f} GiB.",
            "consumeQueueDiskRatio": used_ratio,
            "remainHowManyDataToFlush": f"{unsynced} B",
            "dispatchBehindBytes": "0",
            "earliestMessageTimeStamp": str(self._store.earliest_store_time()),
            "putMessageTimesTotal": str(appended),
            "putMessageSizeTotal": str(statistics.bytes_appended),
            "putMessageAverageSize": f"{statistics.bytes_appended / appended:.1f}" if appended else "0.0",
            "msgPutTotalTodayNow": str(appended),
            "msgPutTotalTodayMorning": str(self._stats.put_total_mornings[1]),
            "msgPutTotalYesterdayMorning": str(self._stats.put_total_mornings[0]),
            "msgGetTotalTodayNow": str(statistics.messages_read),
            "msgGetTotalTodayMorning": str(self._stats.get_total_mornings[1]),
            "msgGetTotalYesterdayMorning": str(self._stats.get_total_mornings[0]),
            "putTps": self._stats.rates("appended"),
            "getTotalTps": self._stats.rates("asked"),
            "getFoundTps": self._stats.rates("found"),
            "getMissTps": self._stats.rates("missed"),
            "getTransferedTps": self._stats.rates("read"),
            "getTransferredTps": self._stats.rates("read"),
            "pageCacheLockTimeMills": "0",
            "sendThreadPoolQueueSize": "0",
            "pullThreadPoolQueueSize": str(self._held_pulls.held),
            "queryThreadPoolQueueSize": "0",
            "EndTransactionQueueSize": "0",
            "sendThreadPoolQueueHeadWaitTimeMills": "0",
            "pullThreadPoolQueueHeadWaitTimeMills": "0",
            "queryThreadPoolQueueHeadWaitTimeMills": "0",
            **self._delay.running_stats(),
            **self._timers.running_stats(),
            **(self._turns.running_stats() if self._turns is not None else {}),
        }
