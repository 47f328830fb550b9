"""Clients come and leave: heartbeat (34), goodbye (35), subscription check (46), members of a group (38, 203, 204).

Source: RocketMQ ClientManageProcessor, ConsumerManageProcessor, AdminBrokerProcessor (4.9).
"""

from __future__ import annotations

import logging

from trio_rmq.broker import names
from trio_rmq.broker.groups import GroupTable
from trio_rmq.broker.members import Member, Members
from trio_rmq.broker.topics import TopicTable
from trio_rmq.broker.wanted import compile_or_refuse, is_tag_type, refuse_unless_enabled
from trio_rmq.errors import RequestError
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.session import Session
from trio_rmq.settings import BrokerConfig
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import (
    Connection,
    ConsumerConnection,
    GetConsumerListByGroupResponseBody,
    ProducerConnection,
    encode_consumer_connection,
    encode_consumer_list,
    encode_producer_connection,
)
from trio_rmq.wire.heartbeat import decode_check_client, decode_heartbeat
from trio_rmq.wire.sysflag import TOPIC_UNIT_SUBSCRIPTION

logger = logging.getLogger(__name__)


class HeartbeatHandlers:
    """Keeps the member tables."""

    def __init__(self, config: BrokerConfig, members: Members, topics: TopicTable, groups: GroupTable) -> None:
        self._config = config
        self._members = members
        self._topics = topics
        self._groups = groups

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.HEART_BEAT, self.heartbeat)
        table.register(RequestCode.UNREGISTER_CLIENT, self.unregister)
        table.register(RequestCode.CHECK_CLIENT_CONFIG, self.check_client)
        table.register(RequestCode.GET_CONSUMER_LIST_BY_GROUP, self.consumer_list)
        table.register(RequestCode.GET_CONSUMER_CONNECTION_LIST, self.consumer_connections)
        table.register(RequestCode.GET_PRODUCER_CONNECTION_LIST, self.producer_connections)

    def heartbeat(self, session: Session, request: Command) -> Command:
        """34: which groups a client is in; a new group and its retry topic are made.

        The remark, empty in RocketMQ, says when members of a group subscribe differently: our client warns of it.
        """
        beat = decode_heartbeat(request.body)
        if not beat.client_id:
            raise RequestError(ResponseCode.SYSTEM_ERROR, "the heartbeat has no clientID")
        problems: list[str] = []
        for data in beat.consumer_data_set:
            problem = names.group_problem(data.group_name)
            if problem is not None:
                raise RequestError(ResponseCode.SYSTEM_ERROR, f"{problem}: rename the consumer group")
        for data in beat.consumer_data_set:
            group = self._groups.find(data.group_name)
            if group is not None and group.retry_queue_nums > 0:
                unit_flags = TOPIC_UNIT_SUBSCRIPTION if data.unit_mode else 0
                self._topics.create_internal(
                    names.retry_topic(data.group_name), group.retry_queue_nums, unit_flags=unit_flags
                )
            if problem := self._members.heartbeat_consumer(data, beat.client_id, session, request):
                problems.append(problem)
        for producer in beat.producer_data_set:
            self._members.heartbeat_producer(producer.group_name, beat.client_id, session, request)
        return request.reply(remark="; ".join(problems)) if problems else request.reply()

    def unregister(self, session: Session, request: Command) -> Command:
        """35: a client leaves a group."""
        header = request.decode_header(headers.UnregisterClientRequestHeader)
        self._members.unregister(header.client_id, header.producer_group, header.consumer_group)
        return request.reply()

    def check_client(self, session: Session, request: Command) -> Command:
        """46: whether the broker takes a subscription: 23 for a filter that cannot be read, 1 when none is served."""
        body = decode_check_client(request.body)
        data = body.subscription_data
        if data is None or is_tag_type(data.expression_type):
            return request.reply()
        refuse_unless_enabled(self._config, data.expression_type)
        compiled = compile_or_refuse(data.sub_string, data.expression_type)
        if compiled.unread:
            logger.warning(
                "client %s of group %s filters %s by %r, of which %r counts for nothing: correct the expression",
                body.client_id, body.group, data.topic, data.sub_string, compiled.unread,
            )  # fmt: skip
        return request.reply()

    def consumer_list(self, session: Session, request: Command) -> Command:
        """38: the client ids of a group's members; 1 when there are none."""
        header = request.decode_header(headers.GetConsumerListByGroupRequestHeader)
        group = self._members.consumer_group(header.consumer_group)
        if group is None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"no consumer for this group, {header.consumer_group}")
        return request.reply(
            body=encode_consumer_list(GetConsumerListByGroupResponseBody(consumer_id_list=list(group.members)))
        )

    def consumer_connections(self, session: Session, request: Command) -> Command:
        """203: a consumer group's connections and subscriptions, and in the remark what is wrong; 206 for none."""
        header = request.decode_header(headers.GetConsumerConnectionListRequestHeader)
        group = self._members.consumer_group(header.consumer_group)
        if group is None:
            raise RequestError(
                ResponseCode.CONSUMER_NOT_ONLINE, f"the consumer group[{header.consumer_group}] not online"
            )
        return request.reply(
            remark=group.problem or None,
            body=encode_consumer_connection(
                ConsumerConnection(
                    connection_set=list(map(_connection, group.members.values())),
                    consume_from_where=group.consume_from_where,
                    consume_type=group.consume_type,
                    message_model=group.message_model,
                    subscription_table=group.subscriptions,
                )
            ),
        )

    def producer_connections(self, session: Session, request: Command) -> Command:
        """204: a producer group's connections; 1 when there are none."""
        header = request.decode_header(headers.GetProducerConnectionListRequestHeader)
        producers = self._members.producers(header.producer_group)
        if not producers:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"the producer group[{header.producer_group}] not exist")
        return request.reply(
            body=encode_producer_connection(ProducerConnection(connection_set=list(map(_connection, producers))))
        )


def _connection(member: Member) -> Connection:
    return Connection(
        client_addr=member.session.peer,
        client_id=member.client_id,
        language=member.language,
        version=member.version,
    )
