"""The settings as typed values: a class for each of RocketMQ's configuration classes; `config.py` reads them.

Invariants: a Python field is the RocketMQ key in snake case (`brokerIP1` -> `broker_ip1`) with RocketMQ's unit and the
default of 4.9.x; where ours differs the field says so.  Only keys that mean something to this package have a field.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from trio_rmq.errors import ConfigError

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1, le=2**62)]
NotNegative = Annotated[int, Meta(ge=0, le=2**62)]
Ratio = Annotated[int, Meta(ge=0, le=100)]
PositiveInt32 = Annotated[int, Meta(ge=1, le=2**31 - 1)]

_CONSUME_QUEUE_ENTRY_BYTES = 20

_KEY_OF_FIELD = {
    "broker_ip1": "brokerIP1",
    "broker_ip2": "brokerIP2",
    "check_crc_on_recover": "checkCRCOnRecover",
    "check_crc_on_pull": "checkCRCOnPull",
    "use_tls": "useTLS",
}
"""Fields whose key is not the plain camel case of the field."""


def key_of_field(field: str) -> str:
    """RocketMQ's key of a field: `mapped_file_size_commit_log` -> `mappedFileSizeCommitLog`."""
    if field in _KEY_OF_FIELD:
        return _KEY_OF_FIELD[field]
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


class BrokerConfig(Struct, kw_only=True, rename=key_of_field):
    """The broker's own keys (RocketMQ: BrokerConfig)."""

    listen_port: Port = 10911
    """Port of clients and name servers; 0 lets the system choose. RocketMQ's fast port is this minus 2."""
    fast_port_enable: bool = True
    """Ours: whether the fast port (listenPort - 2, for Java clients up to 4.4.0) is served as well."""
    broker_cluster_name: str = "DefaultCluster"
    broker_name: str = "DEFAULT_BROKER"
    """`load_broker_settings` puts the machine's name here when the caller knows it, as RocketMQ does."""
    broker_id: Annotated[int, Meta(ge=0, le=2**62)] = 0
    broker_ip1: str = ""
    """Address that clients are told; empty: the server finds this machine's."""
    broker_ip2: str = ""
    """Address that slaves are told; empty: as brokerIP1."""
    broker_permission: Annotated[int, Meta(ge=0, le=7)] = 6
    """2 write, 4 read."""
    namesrv_addr: str = ""
    """Name servers, `host:port` separated by `;`, or one URL of an address server; empty: registered nowhere."""
    fetch_namesrv_addr_by_address_server: bool = False
    """Whether, without namesrvAddr, an address server is asked for the name servers, every 2 minutes."""
    rmq_address_server_domain: str = ""
    """Its `host` or `host:port`; 8080 without a port (Java's rocketmq.namesrv.domain)."""
    rmq_address_server_sub_group: str = "nsaddr"
    """The last part of its path, /rocketmq/SUBGROUP (Java's rocketmq.namesrv.domain.subgroup)."""
    auto_create_topic_enable: bool = True
    auto_create_subscription_group: bool = True
    default_topic_queue_nums: PositiveInt32 = 8
    cluster_topic_enable: bool = True
    broker_topic_enable: bool = True
    trace_topic_enable: bool = False
    """Whether the broker has the topic of message traces from the start, and keeps MSG_REGION and TRACE_ON with each
    message, as 5.x does; a standalone's does unless told otherwise."""
    msg_trace_topic_name: str = "RMQ_SYS_TRACE_TOPIC"
    trace_on: bool = True
    """Told to clients as TRACE_ON in the answer to a send."""
    region_id: str = "DefaultRegion"
    """Told to clients as MSG_REGION in the answer to a send."""
    store_reply_message_enable: bool = True
    """Whether a reply to a request is stored in its cluster's reply topic as well."""
    long_polling_enable: bool = True
    short_polling_time_mills: Positive = 1000
    notify_consumer_ids_changed_enable: bool = True
    register_name_server_period: Positive = 30_000
    """Milliseconds between two registrations; RocketMQ holds it to 10,000..60,000, here any value serves."""
    register_broker_timeout_mills: Positive = 6000
    force_register: bool = True
    """Register every period even when nothing changed; otherwise the name server is first asked for its version."""
    compressed_register: bool = False
    flush_consumer_offset_interval: Positive = 5000
    """Milliseconds between two writes of consumerOffset.json."""
    transaction_time_out: NotNegative = 6000
    """A half message this old, in milliseconds, is asked about, unless it says another time itself."""
    transaction_check_interval: Positive = 60_000
    """Milliseconds from one check of a half message to the next."""
    transaction_check_max: PositiveInt32 = 15
    """After so many checks a half message is parked in TRANS_CHECK_MAX_TIME_TOPIC."""
    reject_transaction_message: bool = False
    """Whether transactional messages are refused."""
    recall_message_enable: bool = True
    """Whether messages that wait for their time can be taken back (5.x, where it is off)."""
    channel_expired_timeout: Positive = 120_000
    """A client silent for this many milliseconds leaves its groups (fixed in 4.9, a key in 5.x)."""

    enable_property_filter: bool = True
    """Whether SQL92 filters are served; RocketMQ's default is false."""
    filter_support_retry: bool = False
    """Whether a SQL92 subscription of a retry topic filters by the filter of each message's own topic."""
    enable_calc_filter_bit_map: bool = False
    """Whether each queue entry gets a map of the filters that are true of its message (needs enableConsumeQueueExt)."""
    expect_consumer_num_use_filter: Annotated[int, Meta(ge=1, le=1_000_000)] = 32
    max_error_rate_of_bloom_filter: Annotated[int, Meta(ge=1, le=99)] = 20
    """Per cent of wrong hits in such a map."""
    server_load_balancer_enable: bool = True
    """Whether clients of 5.x that ask for their queues get their share; otherwise all of them."""
    load_balance_poll_name_server_interval: Positive = 30_000
    """Milliseconds that a topic's route is good for such shares."""
    filter_data_clean_time_span: NotNegative = 24 * 3600 * 1000
    """Milliseconds that the filter of a group without consumers is remembered."""

    def name_servers(self) -> list[str]:
        """`namesrvAddr` taken apart, blanks and empty parts dropped; else the URL of an address server to ask."""
        given = [part.strip() for part in self.namesrv_addr.split(";") if part.strip()]
        if given or not self.fetch_namesrv_addr_by_address_server:
            return given
        domain = self.rmq_address_server_domain
        place = domain if ":" in domain else f"{domain}:8080"
        return [f"http://{place}/rocketmq/{self.rmq_address_server_sub_group}"]


class MessageStoreConfig(Struct, kw_only=True, rename=key_of_field):
    """The store's keys (RocketMQ: MessageStoreConfig); sizes in bytes, intervals in milliseconds."""

    store_path_root_dir: str = "store"
    """RocketMQ's default is `store` in the home folder; ours is in the working folder."""
    store_path_commit_log: str = ""
    """Empty: `commitlog` below storePathRootDir."""
    mapped_file_size_commit_log: Annotated[int, Meta(ge=4096, le=2**31 - 1)] = 1024 * 1024 * 1024
    mapped_file_size_consume_queue: Annotated[int, Meta(ge=20, le=2**31 - 1)] = 300_000 * _CONSUME_QUEUE_ENTRY_BYTES
    """Rounded up to whole entries of 20 bytes."""
    mapped_file_size_consume_queue_ext: Annotated[int, Meta(ge=4096, le=2**31 - 1)] = 48 * 1024 * 1024
    enable_consume_queue_ext: bool = False
    """Whether each queue entry points to a unit that says what a filter may ask before the record is read."""
    broker_role: Literal["ASYNC_MASTER", "SYNC_MASTER", "SLAVE"] = "ASYNC_MASTER"
    flush_disk_type: Literal["ASYNC_FLUSH", "SYNC_FLUSH"] = "ASYNC_FLUSH"
    """SYNC_FLUSH: SEND_OK only after the message is synced to the disk."""
    flush_interval_commit_log: Positive = 500
    flush_commit_log_least_pages: NotNegative = 4
    flush_commit_log_thorough_interval: Positive = 10_000
    transient_store_pool_enable: bool = False
    """Whether records wait in memory and a service writes them to the log, so that no append waits for the disk; what
    was not written yet is lost when the process is killed.  Counts under ASYNC_FLUSH on a master."""
    transient_store_pool_size: Positive = 5
    """How many log files' bytes may wait so, at most 256 MiB in all."""
    fast_fail_if_no_buffer_in_store_pool: bool = False
    """Whether a message that finds no room there is refused; otherwise it waits for the disk."""
    commit_interval_commit_log: Positive = 200
    commit_commit_log_least_pages: NotNegative = 4
    commit_commit_log_thorough_interval: Positive = 200
    flush_interval_consume_queue: Positive = 1000
    flush_consume_queue_least_pages: NotNegative = 2
    flush_consume_queue_thorough_interval: Positive = 60_000
    sync_flush_timeout: Positive = 5000
    """Longest wait of one send for its sync before FLUSH_DISK_TIMEOUT is answered."""
    check_crc_on_recover: bool = True
    check_crc_on_pull: bool = False
    """Ours: whether a pull checks the bodies it serves; that costs two fifths more of a pull of 32 messages of 1 KB."""
    max_message_size: Annotated[int, Meta(ge=1, le=16 * 1024 * 1024)] = 4 * 1024 * 1024
    """Largest body."""
    max_transfer_bytes_on_message_in_memory: PositiveInt32 = 262_144
    max_transfer_count_on_message_in_memory: PositiveInt32 = 32
    max_transfer_bytes_on_message_in_disk: PositiveInt32 = 65_536
    max_transfer_count_on_message_in_disk: PositiveInt32 = 8
    access_message_in_memory_max_ratio: Annotated[int, Meta(ge=0, le=100)] = 40
    """Per cent of memory that the newest messages are taken to be cached in."""
    message_delay_level: str = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"
    """The delays of the levels from 1 on; units s, m, h and d."""
    timer_wheel_enable: bool = True
    """Whether messages may ask for a time of delivery (a key of 5.x)."""
    timer_max_delay_sec: PositiveInt32 = 259_200
    """Furthest such time, in seconds from now: three days (5.x)."""
    flush_delay_offset_interval: Positive = 10_000
    """Longest time from the delivery of a delayed message to the saving of how far its level is; ours saves after a
    second already."""
    delete_when: str = "04"
    """Hours of the day (0 to 23, this machine's time), `;` between them, in which expired files are deleted."""
    file_reserved_time: Annotated[int, Meta(ge=0, le=24 * 366 * 100)] = 72
    """Hours that a full file is kept, counted from its newest record."""
    clean_resource_interval: Positive = 10_000
    """Milliseconds between two looks for room and for expired files."""
    delete_commit_log_files_interval: NotNegative = 100
    """Milliseconds between two deletions of commit log files."""
    clean_file_forcibly_enable: bool = True
    """Whether unexpired files go, the oldest first, when room is very short."""
    disk_max_used_space_ratio: Ratio = 0
    """Per cent of a disk used above which expired files go at any hour.  0: not set; when one of the three ratios is
    set, RocketMQ's defaults of 75, 85 and 90 hold for the others (in that order), and free bytes do not count."""
    disk_space_clean_forcibly_ratio: Ratio = 0
    """Above it unexpired files go as well (a system property in 4.9, a key in 5.x)."""
    disk_space_warning_level_ratio: Ratio = 0
    """Above it sends are refused (a system property in 4.9, a key in 5.x)."""
    disk_free_space_min_bytes: NotNegative = 256 * 1024 * 1024
    """Ours, while no ratio is set: below this many free bytes - on a small disk a twentieth of it - sends are refused;
    below twice as many unexpired files go, below four times as many expired ones at any hour.  0: never."""
    enable_lmq: bool = False
    """Whether topics and groups whose names begin with `%LMQ%` exist unregistered, each topic with one queue.  All
    consumed offsets are then kept in lmqConsumerOffset.json, as RocketMQ does."""
    enable_multi_dispatch: bool = False
    """Whether a message also enters the `%LMQ%` queues that its property INNER_MULTI_DISPATCH names."""
    max_lmq_consume_queue_num: NotNegative = 20_000
    """Most `%LMQ%` queues; a message that would need more is refused."""
    message_index_enable: bool = True
    """Whether messages are found by key.  An index that was off is made up for in the background when it is on again,
    so there is nothing for messageIndexSafe to choose."""
    max_hash_slot_num: PositiveInt32 = 5_000_000
    max_index_num: Annotated[int, Meta(ge=2, le=100_000_000)] = 20_000_000
    """Slots and items of one index file: with the defaults 420 MB long, of which it takes what was written."""
    max_msgs_num_batch: PositiveInt32 = 64
    """Most messages of one query by key."""
    default_query_max_num: PositiveInt32 = 32
    """Most messages of one query by unique key."""

    def __post_init__(self) -> None:
        entry = _CONSUME_QUEUE_ENTRY_BYTES
        self.mapped_file_size_consume_queue = -(-self.mapped_file_size_consume_queue // entry) * entry

    @property
    def commit_log_folder(self) -> str:
        """Where the commit log's files are."""
        return self.store_path_commit_log or f"{self.store_path_root_dir}/commitlog"

    @property
    def delete_hours(self) -> frozenset[int]:
        """`deleteWhen` taken apart; raises ConfigError."""
        parts = [part.strip() for part in self.delete_when.split(";") if part.strip()]
        if not parts or not all(part.isascii() and part.isdigit() and int(part) < 24 for part in parts):
            raise ConfigError(
                f"deleteWhen={self.delete_when}: the value must be hours from 0 to 23 with ; between them"
            )
        return frozenset(map(int, parts))

    @property
    def disk_ratios(self) -> tuple[int, int, int] | None:
        """The ratios above which expired files go, unexpired ones go, and sends are refused; None when none is set."""
        short = self.disk_max_used_space_ratio
        very_short = self.disk_space_clean_forcibly_ratio
        full = self.disk_space_warning_level_ratio
        if not (short or very_short or full):
            return None
        short = short or min(75, very_short or 100, full or 100)
        very_short = very_short or max(short, min(85, full or 100))
        return short, very_short, full or max(very_short, 90)

    @property
    def buffers_writes(self) -> bool:
        """Whether records wait in memory before they are written to the log."""
        return self.transient_store_pool_enable and not self.sync_flush and self.broker_role != "SLAVE"

    @property
    def sync_flush(self) -> bool:
        """Whether a send waits for the disk."""
        return self.flush_disk_type == "SYNC_FLUSH"


class NamesrvConfig(Struct, kw_only=True, rename=key_of_field):
    """The name server's own keys (RocketMQ: NamesrvConfig)."""

    listen_port: Port = 9876
    kv_config_path: str = "namesrv/kvConfig.json"
    """RocketMQ's default is this path in the home folder; ours is in the working folder."""
    scan_not_active_broker_interval: Positive = 5000
    """Milliseconds between two looks for silent brokers (fixed 10,000 in 4.9, a key in 5.x)."""
    heartbeat_timeout_millis: Positive = 120_000
    """Ours: a broker silent this long is dropped, unless its registration asks for another time."""
    order_message_enable: bool = False
    """Whether route answers carry the order-topic configuration."""
    return_order_topic_config_to_broker: bool = True
    """Whether the answer to a registration carries the order-topic table (a key in 5.x; always in 4.9)."""


class RemotingConfig(Struct, kw_only=True, rename=key_of_field):
    """Keys of the listening side (RocketMQ: NettyServerConfig), for name server and broker alike."""

    bind_address: str = "0.0.0.0"  # noqa: S104 - RocketMQ's default; `trio-rmq standalone` sets 127.0.0.1
    server_channel_max_idle_time_seconds: Positive = 120
    server_socket_backlog: PositiveInt32 = 1024
    allowed_origins: str = ""
    """Ours: web origins (`https://example.org`) whose pages may connect by WebSocket, `;` or `,` between them; `*` is
    every one.  Clients that send no Origin header are not browsers and are not asked."""

    tls_server_mode: Literal["disabled", "permissive", "enforcing"] = "permissive"
    """Whether TLS is refused, taken beside plain connections on the same port, or asked of everybody."""
    tls_config_file: str = "/etc/rocketmq/tls.properties"
    """RocketMQ's file of TLS settings (`tls.server.certPath=...`); it is no error that it does not exist."""
    tls_test_mode_enable: bool = True
    """Whether a server without tlsServerCertPath makes itself a certificate at the first handshake, which nobody can
    verify."""
    tls_server_need_client_auth: Literal["none", "optional", "require"] = "none"
    tls_server_key_path: str = ""
    tls_server_key_password: str = ""
    tls_server_cert_path: str = ""
    tls_server_auth_client: bool = False
    tls_server_trust_cert_path: str = ""
    use_tls: bool = False
    """Whether a broker's own connections, to name servers and to other brokers, are TLS."""
    tls_client_key_path: str = ""
    tls_client_key_password: str = ""
    tls_client_cert_path: str = ""
    tls_client_auth_server: bool = False
    tls_client_trust_cert_path: str = ""

    def origins(self) -> frozenset[str]:
        """`allowedOrigins` taken apart."""
        return frozenset(part.strip() for part in re.split("[;,]", self.allowed_origins) if part.strip())
