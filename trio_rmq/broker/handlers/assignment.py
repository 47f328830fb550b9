"""Queue assignment by the broker for clients of 5.x: which queues a member consumes (400), and how (401, 402).

Queues are always given to be pulled: this broker serves no pop.  Source: RocketMQ QueryAssignmentProcessor (5.3).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from trio_rmq.broker import names
from trio_rmq.broker.assignment import RequestModes, TopicQueues
from trio_rmq.broker.groups import GroupTable
from trio_rmq.broker.members import Members
from trio_rmq.broker.topics import TopicTable
from trio_rmq.errors import RequestError
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.session import Session
from trio_rmq.settings import BrokerConfig
from trio_rmq.shares import share_averagely, share_by_circle
from trio_rmq.wire.assignment import (
    PULL,
    MessageQueueAssignment,
    QueryAssignmentRequestBody,
    QueryAssignmentResponseBody,
    decode_assignment_query,
    decode_request_mode,
    encode_assignments,
    encode_request_modes,
)
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.heartbeat import BROADCASTING

logger = logging.getLogger(__name__)

STRATEGIES: dict[str, Callable[[str, Sequence[MessageQueue], Sequence[str]], list[MessageQueue]]] = {
    "AVG": share_averagely,
    "AVG_BY_CIRCLE": share_by_circle,
}
"""By the names that RocketMQ's strategies have."""


class AssignmentHandlers:
    """Tells clients their queues; `saved` waits until the modes are written."""

    def __init__(
        self,
        config: BrokerConfig,
        topics: TopicTable,
        groups: GroupTable,
        members: Members,
        queues: TopicQueues,
        modes: RequestModes,
        saved: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._config = config
        self._topics = topics
        self._groups = groups
        self._members = members
        self._queues = queues
        self._modes = modes
        self._saved = saved

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.QUERY_ASSIGNMENT, self.query)
        table.register(RequestCode.SET_MESSAGE_REQUEST_MODE, self.set_mode)
        table.register(RequestCode.GET_ALL_MESSAGE_REQUEST_MODE, self.all_modes)

    def query(self, session: Session, request: Command) -> Later:
        """400: a member's queues of a topic; no list when they cannot be told: the client keeps what it has."""
        query = decode_assignment_query(request.body)

        async def answer() -> Sequence[Command]:
            queues = await self._queues_of(query, session)
            assignments = None
            if queues is not None:
                assignments = [MessageQueueAssignment(message_queue=queue, mode=PULL) for queue in queues]
            body = QueryAssignmentResponseBody(message_queue_assignments=assignments)
            return [request.reply(body=encode_assignments(body))]

        return Later(answer)

    async def _queues_of(self, query: QueryAssignmentRequestBody, session: Session) -> list[MessageQueue] | None:
        topic, group = query.topic, query.consumer_group
        if self._topics.is_light(topic) and query.message_model != BROADCASTING:
            queues: list[MessageQueue] | None = [MessageQueue(topic=topic, broker_name=self._config.broker_name)]
        else:
            queues = await self._queues.queues(topic)
        if queues is None:
            if not topic.startswith(names.RETRY_PREFIX):
                logger.warning("group %s asks for queues of %s, which no name server knows", group, topic)
            return None
        if query.message_model == BROADCASTING or not self._config.server_load_balancer_enable:
            return queues
        connected = self._members.consumer_group(group)
        strategy = STRATEGIES.get(query.strategy_name or "")
        if connected is None or strategy is None:
            logger.warning(
                "client %s of group %s (%s) gets no queues of %s: %s",
                query.client_id, group, session.peer, topic,
                "its group is not connected here" if connected is None
                else f"the strategy {query.strategy_name} is none of {', '.join(STRATEGIES)}",
            )  # fmt: skip
            return None
        return strategy(query.client_id, queues, sorted(connected.members))

    def set_mode(self, session: Session, request: Command) -> Later:
        """401: how a group gets a topic's messages; anything but PULL is refused."""
        mode = decode_request_mode(request.body)
        if mode.topic.startswith(names.RETRY_PREFIX):
            raise RequestError(ResponseCode.NO_PERMISSION, "retry topic is not allowed to set mode")
        if self._topics.get(mode.topic) is None:
            raise RequestError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{mode.topic}] not exist")
        if self._groups.find(mode.consumer_group) is None:
            raise RequestError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, "subscription group does not exist")
        if mode.mode != PULL:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR, f"this broker does not serve the mode {mode.mode}: set {PULL}"
            )
        self._modes.set(mode)

        async def answer() -> Sequence[Command]:
            problem = await self._saved()
            if problem is not None:
                raise RequestError(ResponseCode.SYSTEM_ERROR, f"changed, but a restart will forget it: {problem}")
            return [request.reply()]

        return Later(answer)

    def all_modes(self, session: Session, request: Command) -> Command:
        """402: every mode that was set."""
        return request.reply(body=encode_request_modes(self._modes.all()))
