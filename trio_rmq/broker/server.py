"""A whole broker: what belongs to what, and the order in which it starts and ends.

Nesting is the shutdown order: the store outermost, then the tables' files, then the services (registration, expiry of
silent clients), then the sessions.  Cancelling `serve_broker` so ends the sessions first, says goodbye to the name
servers, writes the tables, and closes the store last.  Losing the store ends the broker with the reason.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec
import trio

from trio_rmq.broker.assignment import RequestModes, TopicQueues
from trio_rmq.broker.consumer_filters import ConsumerFilters
from trio_rmq.broker.deferring import Deferring
from trio_rmq.broker.delay import DelayService
from trio_rmq.broker.groups import GroupTable
from trio_rmq.broker.handlers.admin import BrokerAdminHandlers, GroupAdminHandlers, TopicAdminHandlers
from trio_rmq.broker.handlers.assignment import AssignmentHandlers
from trio_rmq.broker.handlers.cleanup import CleanupHandlers
from trio_rmq.broker.handlers.consumers import ConsumerCallHandlers
from trio_rmq.broker.handlers.delay import DelayHandlers
from trio_rmq.broker.handlers.heartbeat import HeartbeatHandlers
from trio_rmq.broker.handlers.locks import LockHandlers
from trio_rmq.broker.handlers.offset import OffsetHandlers
from trio_rmq.broker.handlers.progress import ProgressHandlers
from trio_rmq.broker.handlers.pull import PullHandlers
from trio_rmq.broker.handlers.query import QueryHandlers
from trio_rmq.broker.handlers.reply import ReplyHandlers
from trio_rmq.broker.handlers.send import SendHandlers
from trio_rmq.broker.handlers.send_back import SendBackHandlers
from trio_rmq.broker.handlers.stats import StatsHandlers
from trio_rmq.broker.handlers.timer import TimerHandlers
from trio_rmq.broker.handlers.transaction import TransactionHandlers
from trio_rmq.broker.locks import QueueLocks
from trio_rmq.broker.long_polling import HeldPulls
from trio_rmq.broker.loop_turns import LoopTurns
from trio_rmq.broker.members import Members
from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.broker.persistence import Persistence
from trio_rmq.broker.registration import Advertised, Registration
from trio_rmq.broker.runtime import RuntimeInfo
from trio_rmq.broker.sendable import SendableTopics
from trio_rmq.broker.stats import BrokerStats
from trio_rmq.broker.timers import Timers
from trio_rmq.broker.topics import TopicTable
from trio_rmq.broker.transactions import Transactions
from trio_rmq.broker.wanted import Subscriptions
from trio_rmq.config import BrokerConfig, MessageStoreConfig, RemotingConfig
from trio_rmq.errors import ListenError, StoreFailedError
from trio_rmq.remoting.address import format_address
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.hooks import NO_HOOKS, ServerHooks
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.local_address import WILDCARDS, ReservedPort, outward_address, reserve_port, resolve
from trio_rmq.remoting.session import SessionCallback
from trio_rmq.remoting.settings import RemotingSettings
from trio_rmq.remoting.tls import ServerTls
from trio_rmq.remoting.tls_context import client_context
from trio_rmq.store.disk import Disk
from trio_rmq.store.dispatch import DelayLevels
from trio_rmq.store.json_files import ConfigFile
from trio_rmq.store.message_store import MessageStore, open_message_store
from trio_rmq.store.recovery import Progress
from trio_rmq.supervision import lone_errors, serving_while, without_readiness
from trio_rmq.wire.ids import Host, pack_host

logger = logging.getLogger(__name__)

FAST_PORT_DISTANCE = 2
"""The second listener is this far below listenPort: Java clients up to 4.4.0 send there by default."""
FAILURE_GRACE_SECONDS = 1.0
"""From the store's failure to the broker's end: time for the answers that say so."""
_SHOWN_ANYWAY = {"filterServerNums": "0", "slaveReadEnable": "false"}
"""What mqadmin's exportConfigs must find among the settings, and what is so here while there is no such setting."""
HA_PORT_DISTANCE = 1
"""Where slaves would connect: announced, as RocketMQ does."""


@dataclass(frozen=True)
class BrokerReady:
    """What a started broker says: `address` as clients are told it, `listening` as bound.

    `store` is for who embeds the broker: reading it is free, writing is the broker's.
    """

    address: str
    listening: list[str]
    store: MessageStore


@dataclass(frozen=True)
class _Place:
    """Where the broker is: the advertised host, its numeric form, and the port."""

    host: str
    numeric: str
    ha_host: str
    reserved: ReservedPort

    @property
    def port(self) -> int:
        return self.reserved.port

    @property
    def store_host(self) -> Host:
        return pack_host(self.numeric, self.port)

    @property
    def advertised(self) -> Advertised:
        return Advertised(
            format_address(self.host, self.port), format_address(self.ha_host, self.port + HA_PORT_DISTANCE)
        )


async def serve_broker(
    config: BrokerConfig,
    store_config: MessageStoreConfig,
    *,
    remoting: RemotingConfig | None = None,
    disk: Disk | None = None,
    progress: Progress | None = None,
    hooks: ServerHooks = NO_HOOKS,
    turns: LoopTurns | None = None,
    task_status: trio.TaskStatus[BrokerReady] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `task_status` gets a BrokerReady once every name server knows the broker (or failed).

    `progress` is told how far the store's recovery is; `hooks` stand around its handlers; what `turns` counted, when
    somebody runs it, is part of the runtime information.
    Raises StoreError (locked, unwritable, corrupt; StoreFailedError when it fails later), ListenError and ConfigError.
    """
    remoting = remoting or RemotingConfig()
    place = await _find_place(config, remoting)
    config = msgspec.structs.replace(config, broker_ip1=config.broker_ip1 or place.host)  # ours: requests change it
    with place.reserved, lone_errors():
        async with open_message_store(store_config, disk=disk, store_host=place.store_host, progress=progress) as store:
            await _Broker(config, store_config, remoting, store, place, disk, hooks, turns).serve(task_status)


async def _find_place(config: BrokerConfig, remoting: RemotingConfig) -> _Place:
    host = config.broker_ip1
    if not host:
        host = remoting.bind_address if remoting.bind_address not in WILDCARDS else await outward_address()
    numeric = await resolve(host, "brokerIP1")
    reserved = await reserve_port(remoting.bind_address, config.listen_port)
    return _Place(host, numeric, config.broker_ip2 or host, reserved)


class _Broker:
    """The parts of one running broker, wired together."""

    def __init__(
        self,
        config: BrokerConfig,
        store_config: MessageStoreConfig,
        remoting: RemotingConfig,
        store: MessageStore,
        place: _Place,
        disk: Disk | None,
        hooks: ServerHooks,
        turns: LoopTurns | None,
    ) -> None:
        self._config = config
        self._hooks = hooks
        self._turns = turns
        self._store_config = store_config
        self._remoting = remoting
        self._tls = ServerTls(remoting)
        self._store = store
        self._place = place
        delays_ms = DelayLevels(store_config.message_delay_level).delays_ms
        delay_levels = len(delays_ms)
        lmq_enable = store_config.enable_lmq
        self._topics = TopicTable(config, delay_levels=delay_levels, lmq_enable=lmq_enable)
        self._groups = GroupTable(auto_create=config.auto_create_subscription_group, lmq_enable=lmq_enable)
        self._offsets = ConsumerOffsetTable(lmq_enable=lmq_enable)
        if lmq_enable:  # RocketMQ keeps all offsets in another file then; where it is missing, the usual one counts
            ConfigFile(f"{store_config.store_path_root_dir}/config/consumerOffset.json", disk=disk).load(
                self._offsets.load
            )
        self._held_pulls = HeldPulls()
        self._members = Members(self._notify_enabled, expiry_seconds=config.channel_expired_timeout / 1000)
        self._filters = ConsumerFilters(config)
        self._members.on_subscribed = self._filters.subscribed
        self._members.on_deserted = self._filters.deserted
        self._queues = TopicQueues(config)
        self._stats = BrokerStats(store, config.broker_cluster_name)
        self._modes = RequestModes()
        self._delay = DelayService(
            store,
            self._held_pulls,
            delays_ms=delays_ms,
            interval_seconds=store_config.flush_delay_offset_interval / 1000,
            save_soon=lambda: self._persistence.save_soon(),
            saved=lambda: self._persistence.saved(),
        )
        self._deferring = Deferring(config, store_config, max_delay_level=delay_levels)
        self._transactions = Transactions(
            config,
            store,
            self._topics,
            self._offsets,
            self._members,
            self._held_pulls,
            store_host=place.store_host,
            reserved_ms=max(store_config.file_reserved_time, 1) * 3_600_000,
            scheduled=self._deferring.scheduled,
        )
        self._timers = Timers(
            store,
            self._held_pulls,
            roll_after_ms=max(store_config.file_reserved_time, 1) * 3_600_000 * 3 // 4,
            saved=lambda: self._persistence.saved(),
        )
        self._persistence = Persistence(
            f"{store_config.store_path_root_dir}/config",
            {
                "topics.json": self._topics,
                "subscriptionGroup.json": self._groups,
                "lmqConsumerOffset.json" if lmq_enable else "consumerOffset.json": self._offsets,
                "consumerFilter.json": self._filters,
                "messageRequestMode.json": self._modes,
                "delayOffset.json": self._delay.table,
                "timerProgress.json": self._timers.progress,
            },
            interval_seconds=config.flush_consumer_offset_interval / 1000,
            disk=disk,
        )
        self._persistence.load()
        self._topics.restore(store.queues())
        self._handlers = hooks.wrap(self._make_handlers(delay_levels))
        if config.enable_calc_filter_bit_map:
            store.bit_map_of = self._filters.bit_map
        store.on_arrival, store.awaited = self._held_pulls.arrived, self._held_pulls.awaited

    def _notify_enabled(self, group_name: str) -> bool:
        group = self._groups.get(group_name)
        return self._config.notify_consumer_ids_changed_enable and (
            group is None or group.notify_consumer_ids_changed_enable
        )

    def _make_handlers(self, delay_levels: int) -> HandlerTable:
        table = HandlerTable()
        store, topics, groups, offsets = self._store, self._topics, self._groups, self._offsets
        sendable = SendableTopics(self._config, topics)
        SendHandlers(
            self._config,
            store,
            topics,
            groups,
            sendable,
            store_host=self._place.store_host,
            body_size_max_bytes=self._store_config.max_message_size,
            deferring=self._deferring,
            make_transaction_topics=self._transactions.make_topics,
        ).register(table)
        ReplyHandlers(
            self._config,
            store,
            sendable,
            self._members,
            store_host=self._place.store_host,
            body_size_max_bytes=self._store_config.max_message_size,
        ).register(table)
        TransactionHandlers(store, self._transactions).register(table)
        TimerHandlers(
            self._config,
            store,
            topics,
            self._timers,
            self._deferring,
            lambda: self._store_config.timer_max_delay_sec * 1000,
        ).register(table)
        SendBackHandlers(self._config, store, topics, groups, self._stats, delay_levels=delay_levels).register(table)
        DelayHandlers(self._delay.table).register(table)
        subscriptions = Subscriptions(self._config, self._members, self._filters)
        PullHandlers(
            self._config, store, topics, groups, subscriptions, offsets, self._held_pulls, self._stats
        ).register(table)
        OffsetHandlers(store, offsets).register(table)
        HeartbeatHandlers(self._config, self._members, topics, groups).register(table)
        LockHandlers(QueueLocks()).register(table)
        QueryHandlers(store, self._store_config.default_query_max_num).register(table)
        saved = self._persistence.saved
        TopicAdminHandlers(self._config.broker_name, topics, store, offsets, saved).register(table)
        CleanupHandlers(topics, store, offsets, saved).register(table)
        GroupAdminHandlers(groups, offsets, saved).register(table)
        ConsumerCallHandlers(self._config.broker_name, store, topics, self._members, offsets).register(table)
        ProgressHandlers(
            self._config.broker_name,
            self._place.advertised.address,
            store,
            topics,
            groups,
            self._members,
            offsets,
            self._filters,
            self._stats.get_rate,
        ).register(table)
        AssignmentHandlers(self._config, topics, groups, self._members, self._queues, self._modes, saved).register(
            table
        )
        StatsHandlers(self._stats).register(table)
        runtime = RuntimeInfo(store, self._held_pulls, self._stats, self._delay, self._timers, self._turns)
        BrokerAdminHandlers(self._config, topics, self._properties, runtime.table, self._settings_changed).register(
            table
        )
        return table

    def _settings_changed(self) -> None:
        self._groups.auto_create = self._config.auto_create_subscription_group
        self._topics.settings_changed()

    def _properties(self) -> dict[str, str]:
        texts: dict[str, str] = {}
        for struct in (self._config, self._store_config, self._remoting):
            for key, value in msgspec.to_builtins(struct).items():
                if "Password" in key:
                    continue
                texts[key] = str(value).lower() if isinstance(value, bool) else str(value)
        for key, text in _SHOWN_ANYWAY.items():
            texts.setdefault(key, text)
        return texts

    async def serve(self, task_status: trio.TaskStatus[BrokerReady]) -> None:
        """Run the services and the sessions until cancelled or until the store fails."""
        async with (
            serving_while(without_readiness(self._persistence.run)),
            RemotingClient(ssl_context=client_context(self._remoting), lasting=True) as client,
            trio.open_nursery() as services,
        ):
            self._queues.client = client
            services.start_soon(self._end_with_store)
            services.start_soon(self._store.run_retention)
            services.start_soon(self._stats.run)
            services.start_soon(self._held_pulls.run)
            if self._store_config.broker_role != "SLAVE":
                await self._transactions.load()
                services.start_soon(self._delay.run)
                services.start_soon(self._transactions.run)
                await self._timers.load()
                services.start_soon(self._timers.run)
            registration = Registration(self._config, self._topics, client, self._place.advertised)
            self._topics.on_change = lambda name: self._topic_changed(registration, name)
            self._groups.on_change = self._persistence.save_soon
            services.start_soon(self._members.run_expiry)
            async with trio.open_nursery() as sessions:
                listening = await self._listen(sessions)
                await services.start(registration.run)
                task_status.started(BrokerReady(self._place.advertised.address, listening, self._store))

    def _topic_changed(self, registration: Registration, name: str) -> None:
        registration.topic_changed(name)
        self._persistence.save_soon()
        self._held_pulls.wake_topic(name)

    async def _end_with_store(self) -> None:
        await self._store.wait_failed()
        # Senders whose sync failed are owed the answer 14; what they send meanwhile is refused with 14 as well.
        await trio.sleep(FAILURE_GRACE_SECONDS)
        raise self._store.failure or StoreFailedError("the store failed")

    async def _listen(self, sessions: trio.Nursery) -> list[str]:
        """Listen on listenPort, and on the fast port when it is to be had."""
        host, port = self._remoting.bind_address, self._place.port
        self._place.reserved.release()
        listening: list[str] = await sessions.start(self._serve_sessions, format_address(host, port))
        fast_port = port - FAST_PORT_DISTANCE
        if self._config.fast_port_enable and self._config.listen_port and fast_port > 0:
            try:
                listening += await sessions.start(self._serve_sessions, format_address(host, fast_port))
            except ListenError as error:
                logger.warning("the fast port is not served (old Java clients need vipChannelEnabled=false): %s", error)
        return listening

    async def _serve_sessions(self, address: str, *, task_status: trio.TaskStatus[list[str]]) -> None:
        on_close: SessionCallback = self._members.session_closed
        settings = RemotingSettings(
            connection_idle_seconds=self._remoting.server_channel_max_idle_time_seconds,
            allowed_origins=self._remoting.origins(),
        )
        await serve_remoting(
            [address],
            self._handlers,
            settings=settings,
            tls=self._tls,
            on_open=self._hooks.on_open,
            on_close=on_close,
            task_status=task_status,
        )
