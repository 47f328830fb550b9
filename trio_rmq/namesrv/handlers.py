"""Request handlers of the name server, by request code.

Each takes the table it needs and answers at once.  Codes, remarks and quirks are Apache 4.9's (DefaultRequestProcessor)
unless protocol/differences.md says otherwise; an unknown code is answered 3 (Apache's 4.9 name server stays silent).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from trio_rmq.errors import ProtocolError, RequestError
from trio_rmq.namesrv.kv_config import ORDER_TOPIC_CONFIG, KVConfigTable
from trio_rmq.namesrv.liveness import LivenessScan
from trio_rmq.namesrv.routes import BrokerKey, RouteTable
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.session import Session
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.hashing import body_crc
from trio_rmq.wire.registration import decode_register_body
from trio_rmq.wire.routes import (
    KVTable,
    TopicList,
    decode_route,
    encode_cluster_info,
    encode_kv_table,
    encode_route,
    encode_topic_list,
    wants_standard_json,
)
from trio_rmq.wire.topics import decode_data_version, encode_data_version

logger = logging.getLogger(__name__)

HEARTBEAT_TIMEOUT_MAX_SECONDS = 24 * 3600.0
"""Longest silence that a registration may ask for."""


class BrokerHandlers:
    """What brokers ask: registration, removal, data version, light heartbeat."""

    def __init__(
        self,
        routes: RouteTable,
        kv_config: KVConfigTable,
        scan: LivenessScan,
        *,
        heartbeat_timeout_seconds: float,
        answer_order_config: bool,
    ) -> None:
        self._routes = routes
        self._kv_config = kv_config
        self._scan = scan
        self._heartbeat_timeout_seconds = heartbeat_timeout_seconds
        self._answer_order_config = answer_order_config

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.REGISTER_BROKER, self.register_broker)
        table.register(RequestCode.UNREGISTER_BROKER, self.unregister_broker)
        table.register(RequestCode.QUERY_DATA_VERSION, self.query_data_version)
        table.register(RequestCode.BROKER_HEARTBEAT, self.broker_heartbeat)

    def register_broker(self, session: Session, request: Command) -> Command:
        """103: a broker's whole table, or only what changed in it; a slave learns its master."""
        header = request.decode_header(headers.RegisterBrokerRequestHeader)
        if header.body_crc32 and body_crc(request.body) != header.body_crc32:
            raise RequestError(ResponseCode.SYSTEM_ERROR, "crc32 not match: the body was damaged on its way")
        body = decode_register_body(request.body, compressed=bool(header.compressed), version=request.version)
        for topic in body.topic_config_serialize_wrapper.topic_config_table.values():
            if not topic.topic_name or topic.read_queue_nums < 0 or topic.write_queue_nums < 0:
                raise RequestError(ResponseCode.SYSTEM_ERROR, f"topic {topic.topic_name!r} has no valid queue counts")
        known = self._routes.live_broker(header.broker_addr) is not None
        timeout_seconds = self._heartbeat_timeout_seconds
        if header.heartbeat_timeout_millis:
            timeout_seconds = min(max(header.heartbeat_timeout_millis, 1) / 1000, HEARTBEAT_TIMEOUT_MAX_SECONDS)
        master = self._routes.register(
            BrokerKey(header.cluster_name, header.broker_name, header.broker_id),
            header.broker_addr,
            header.ha_server_addr,
            body,
            now=trio.current_time(),
            timeout_seconds=timeout_seconds,
            session=session,
        )
        if not known:
            logger.info("broker %s (%s) registered", header.broker_name, header.broker_addr)
            self._scan.broker_registered()
        answer = headers.RegisterBrokerResponseHeader(
            ha_server_addr=master.ha_address or None, master_addr=master.master_address or None
        )
        orders = self._kv_config.namespace(ORDER_TOPIC_CONFIG) if self._answer_order_config else None
        return request.reply(header=answer, body=b"" if orders is None else encode_kv_table(KVTable(table=orders)))

    def unregister_broker(self, session: Session, request: Command) -> Command:
        """104: a broker stops."""
        header = request.decode_header(headers.UnRegisterBrokerRequestHeader)
        key = BrokerKey(header.cluster_name, header.broker_name, header.broker_id)
        self._routes.unregister(key, header.broker_addr)
        logger.info("broker %s (%s) unregistered", header.broker_name, header.broker_addr)
        return request.reply()

    def query_data_version(self, session: Session, request: Command) -> Command:
        """322: whether the broker's table differs from the one registered; counts as a sign of life when not."""
        header = request.decode_header(headers.QueryDataVersionRequestHeader)
        live = self._routes.live_broker(header.broker_addr)
        changed = live is None or not decode_data_version(request.body).same_as(live.data_version)
        if not changed:
            self._routes.heard(header.broker_addr, now=trio.current_time())
        return request.reply(
            header=headers.QueryDataVersionResponseHeader(changed=changed),
            body=b"" if live is None else encode_data_version(live.data_version),
        )

    def broker_heartbeat(self, session: Session, request: Command) -> Command:
        """904: a sign of life and nothing else."""
        header = request.decode_header(headers.BrokerHeartbeatRequestHeader)
        self._routes.heard(header.broker_addr, now=trio.current_time())
        return request.reply()


class RouteHandlers:
    """What clients and tools ask about topics and brokers."""

    def __init__(self, routes: RouteTable, kv_config: KVConfigTable, *, order_message_enable: bool) -> None:
        self._routes = routes
        self._kv_config = kv_config
        self._order_message_enable = order_message_enable

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.GET_ROUTEINFO_BY_TOPIC, self.route)
        table.register(RequestCode.GET_BROKER_CLUSTER_INFO, self.cluster_info)
        table.register(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER, self.all_topics)
        table.register(RequestCode.GET_TOPICS_BY_CLUSTER, self.topics_by_cluster)
        table.register(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS, self.system_topics)
        table.register(RequestCode.GET_UNIT_TOPIC_LIST, self._units(unit=True, subscription=None))
        table.register(RequestCode.GET_HAS_UNIT_SUB_TOPIC_LIST, self._units(unit=None, subscription=True))
        table.register(RequestCode.GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST, self._units(unit=False, subscription=True))
        table.register(RequestCode.DELETE_TOPIC_IN_NAMESRV, self.delete_topic)
        table.register(RequestCode.REGISTER_TOPIC_IN_NAMESRV, self.register_topic)
        table.register(RequestCode.WIPE_WRITE_PERM_OF_BROKER, self.wipe_write_permission)
        table.register(RequestCode.ADD_WRITE_PERM_OF_BROKER, self.add_write_permission)

    def route(self, session: Session, request: Command) -> Command:
        """105: where a topic is; 17 when no live broker has it."""
        header = request.decode_header(headers.GetRouteInfoRequestHeader)
        route = self._routes.route(header.topic)
        if route is None:
            raise RequestError(
                ResponseCode.TOPIC_NOT_EXIST, f"No topic route info in name server for the topic: {header.topic}"
            )
        if self._order_message_enable:
            route.order_topic_conf = self._kv_config.get(ORDER_TOPIC_CONFIG, header.topic)
        standard = wants_standard_json(request.version, header.accept_standard_json_only)
        return request.reply(body=encode_route(route, standard_json=standard))

    def cluster_info(self, session: Session, request: Command) -> Command:
        """106: all brokers and clusters."""
        return request.reply(body=encode_cluster_info(self._routes.cluster_info()))

    def all_topics(self, session: Session, request: Command) -> Command:
        """206: all topic names."""
        return request.reply(body=encode_topic_list(TopicList(topic_list=self._routes.topics())))

    def topics_by_cluster(self, session: Session, request: Command) -> Command:
        """224: names of the topics on one cluster."""
        header = request.decode_header(headers.GetTopicsByClusterRequestHeader)
        names = self._routes.topics_of_cluster(header.cluster)
        return request.reply(body=encode_topic_list(TopicList(topic_list=names)))

    def system_topics(self, session: Session, request: Command) -> Command:
        """304: names of clusters and brokers, whose topics tools do not show, and some broker's address."""
        names, address = self._routes.system_topics()
        return request.reply(body=encode_topic_list(TopicList(topic_list=names, broker_addr=address or None)))

    def _units(self, *, unit: bool | None, subscription: bool | None) -> Callable[[Session, Command], Command]:
        def answer(session: Session, request: Command) -> Command:
            names = self._routes.unit_topics(unit=unit, subscription=subscription)
            return request.reply(body=encode_topic_list(TopicList(topic_list=names)))

        return answer

    def delete_topic(self, session: Session, request: Command) -> Command:
        """216: forget a topic; the next full registration of a broker that still has it brings it back."""
        header = request.decode_header(headers.DeleteTopicFromNamesrvRequestHeader)
        self._routes.delete_topic(header.topic, header.cluster_name or None)
        return request.reply()

    def register_topic(self, session: Session, request: Command) -> Command:
        """217 (5.x): add a topic's queue data by hand."""
        header = request.decode_header(headers.RegisterTopicRequestHeader)
        if request.body:
            self._routes.register_topic(header.topic, decode_route(request.body).queue_datas)
        return request.reply()

    def wipe_write_permission(self, session: Session, request: Command) -> Command:
        """205: producers stop using a broker; its next changed registration sets permissions anew."""
        header = request.decode_header(headers.WipeWritePermOfBrokerRequestHeader)
        count = self._routes.change_write_permission(header.broker_name, writable=False)
        logger.info("write permission of broker %s wiped on %d topics by %s", header.broker_name, count, session.peer)
        return request.reply(header=headers.WipeWritePermOfBrokerResponseHeader(wipe_topic_count=count))

    def add_write_permission(self, session: Session, request: Command) -> Command:
        """327: producers may use a broker again; only the write bit is added (Apache sets read and write)."""
        header = request.decode_header(headers.AddWritePermOfBrokerRequestHeader)
        count = self._routes.change_write_permission(header.broker_name, writable=True)
        logger.info("write permission of broker %s added on %d topics by %s", header.broker_name, count, session.peer)
        return request.reply(header=headers.AddWritePermOfBrokerResponseHeader(add_topic_count=count))


class KVConfigHandlers:
    """The key-value table and the name server's own settings; `changed` is called after each change."""

    def __init__(
        self, kv_config: KVConfigTable, changed: Callable[[], None], properties: Callable[[], dict[str, str]]
    ) -> None:
        self._kv_config = kv_config
        self._changed = changed
        self._properties = properties

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.PUT_KV_CONFIG, self.put)
        table.register(RequestCode.GET_KV_CONFIG, self.get)
        table.register(RequestCode.DELETE_KV_CONFIG, self.delete)
        table.register(RequestCode.GET_KVLIST_BY_NAMESPACE, self.namespace)
        table.register(RequestCode.GET_NAMESRV_CONFIG, self.get_config)
        table.register(RequestCode.UPDATE_NAMESRV_CONFIG, self.update_config)

    def put(self, session: Session, request: Command) -> Command:
        """100: set one value."""
        header = request.decode_header(headers.PutKVConfigRequestHeader)
        self._kv_config.put(header.namespace, header.key, header.value)
        self._changed()
        return request.reply()

    def get(self, session: Session, request: Command) -> Command:
        """101: one value; 22 when there is none."""
        header = request.decode_header(headers.GetKVConfigRequestHeader)
        value = self._kv_config.get(header.namespace, header.key)
        if value is None:
            raise RequestError(
                ResponseCode.QUERY_NOT_FOUND, f"No config item, Namespace: {header.namespace} Key: {header.key}"
            )
        return request.reply(header=headers.GetKVConfigResponseHeader(value=value))

    def delete(self, session: Session, request: Command) -> Command:
        """102: remove one value."""
        header = request.decode_header(headers.DeleteKVConfigRequestHeader)
        self._kv_config.delete(header.namespace, header.key)
        self._changed()
        return request.reply()

    def namespace(self, session: Session, request: Command) -> Command:
        """219: all values of a namespace; 22 when there is none."""
        header = request.decode_header(headers.GetKVListByNamespaceRequestHeader)
        values = self._kv_config.namespace(header.namespace)
        if values is None:
            raise RequestError(ResponseCode.QUERY_NOT_FOUND, f"No config item, Namespace: {header.namespace}")
        return request.reply(body=encode_kv_table(KVTable(table=values)))

    def get_config(self, session: Session, request: Command) -> Command:
        """319: the settings as properties text."""
        return request.reply(body="".join(f"{k}={v}\n" for k, v in self._properties().items()).encode())

    def update_config(self, session: Session, request: Command) -> Command:
        """318: no setting of a running name server can be changed; paths and addresses never are from outside."""
        try:
            text = request.body.decode()
        except UnicodeDecodeError:
            raise ProtocolError("the settings are no UTF-8 text") from None
        keys = [line.split("=", 1)[0].strip() for line in text.splitlines() if line.strip()]
        raise RequestError(
            ResponseCode.NO_PERMISSION,
            f"{', '.join(keys) or 'nothing'}: settings are read at start only; change the file and restart",
        )
