"""A whole name server.  Nesting is its shutdown order: key-value file outermost, then the scan, then the sessions."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec
import trio

from trio_rmq.config import NamesrvConfig, RemotingConfig
from trio_rmq.namesrv.handlers import BrokerHandlers, KVConfigHandlers, RouteHandlers
from trio_rmq.namesrv.kv_config import KVConfigTable
from trio_rmq.namesrv.liveness import LivenessScan
from trio_rmq.namesrv.routes import RouteTable
from trio_rmq.remoting.address import format_address
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.session import Session, SessionCallback
from trio_rmq.remoting.settings import RemotingSettings
from trio_rmq.remoting.tls import ServerTls
from trio_rmq.store.disk import Disk
from trio_rmq.store.json_files import ConfigFile
from trio_rmq.supervision import lone_errors, serving_while, without_readiness

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NameServerReady:
    """What a started name server says: `address` is "ip:port" as bound."""

    address: str


class _SavedWhenChanged:
    """Writes the key-value file after each change, one write for changes that come together."""

    # `_unsaved` is true from a change on until a save that began after it has ended.

    def __init__(self, kv_config: KVConfigTable, file: ConfigFile) -> None:
        self._kv_config = kv_config
        self._file = file
        self._changed = trio.Event()
        self._unsaved = False

    def changed(self) -> None:
        """The table is not what the file holds."""
        self._unsaved = True
        self._changed.set()

    async def run(self) -> None:
        """Save for ever; a save that fails is said and tried at the next change.  Cancelled, it saves what is left."""
        try:
            while True:
                await self._changed.wait()
                self._changed = trio.Event()
                try:
                    await self._file.save(self._kv_config.encode())
                    self._unsaved = self._changed.is_set()
                except OSError as error:
                    logger.error("%s cannot be written: %s; the table is kept in memory", self._file.path, error)
        finally:
            if self._unsaved:
                try:
                    self._file.save_now(self._kv_config.encode())
                except OSError as error:
                    logger.error("%s cannot be written: %s; its last changes are lost", self._file.path, error)


async def serve_name_server(
    config: NamesrvConfig,
    *,
    remoting: RemotingConfig | None = None,
    disk: Disk | None = None,
    task_status: trio.TaskStatus[NameServerReady] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `task_status` gets a NameServerReady when the port listens.

    Raises ListenError when the port cannot be bound and StoreError when the key-value file cannot be read.
    """
    remoting = remoting or RemotingConfig()
    routes = RouteTable()
    kv_config = KVConfigTable()
    file = ConfigFile(config.kv_config_path, disk=disk)
    file.load(kv_config.load)
    scan = LivenessScan(routes, interval_seconds=config.scan_not_active_broker_interval / 1000)
    saving = _SavedWhenChanged(kv_config, file)

    table = HandlerTable()
    BrokerHandlers(
        routes,
        kv_config,
        scan,
        heartbeat_timeout_seconds=config.heartbeat_timeout_millis / 1000,
        answer_order_config=config.return_order_topic_config_to_broker,
    ).register(table)
    RouteHandlers(routes, kv_config, order_message_enable=config.order_message_enable).register(table)
    KVConfigHandlers(kv_config, saving.changed, lambda: _properties(config, remoting)).register(table)

    def forget(session: Session) -> None:
        for address in routes.remove_session(session):
            logger.warning("broker %s is dropped: its connection closed", address)

    settings = RemotingSettings(
        connection_idle_seconds=remoting.server_channel_max_idle_time_seconds, allowed_origins=remoting.origins()
    )
    tls = ServerTls(remoting)
    with lone_errors():
        async with (
            serving_while(without_readiness(saving.run)),
            trio.open_nursery() as services,
            trio.open_nursery() as sessions,
        ):
            services.start_soon(scan.run)
            addresses: list[str] = await sessions.start(
                _listen, format_address(remoting.bind_address, config.listen_port), table, settings, tls, forget
            )
            task_status.started(NameServerReady(addresses[0]))


async def _listen(
    address: str,
    table: HandlerTable,
    settings: RemotingSettings,
    tls: ServerTls,
    forget: SessionCallback,
    *,
    task_status: trio.TaskStatus[list[str]],
) -> None:
    await serve_remoting([address], table, settings=settings, tls=tls, on_close=forget, task_status=task_status)


def _properties(*configs: msgspec.Struct) -> dict[str, str]:
    texts: dict[str, str] = {}
    for config in configs:
        for key, value in msgspec.to_builtins(config).items():
            if "Password" in key:
                continue
            texts[key] = str(value).lower() if isinstance(value, bool) else str(value)
    return texts
