"""What the broker knows to assign queues: the routes of topics, asked of the name servers, and the modes set by tools.

Invariant: a route is at most loadBalancePollNameServerInterval old when it is used, unless no name server answers.
Source: RocketMQ TopicRouteInfoManager, MessageRequestModeManager (5.3).
"""

from __future__ import annotations

import logging

import trio

from trio_rmq.errors import ProtocolError, RemotingError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.settings import BrokerConfig
from trio_rmq.wire.assignment import (
    MessageRequestModes,
    SetMessageRequestModeRequestBody,
    decode_request_modes,
    encode_request_modes,
)
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.headers import GetRouteInfoRequestHeader
from trio_rmq.wire.routes import TopicRouteData, decode_route
from trio_rmq.wire.sysflag import PERMISSION_READ

logger = logging.getLogger(__name__)

ASK_SECONDS = 3.0
TOPICS_KEPT_MAX = 10_000
"""Most topics whose queues are remembered."""


class TopicQueues:
    """The readable queues of topics on all brokers, as name servers tell them; `client` is set while it runs."""

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self.client: RemotingClient | None = None
        self._known: dict[str, tuple[float, list[MessageQueue] | None]] = {}

    async def queues(self, topic: str) -> list[MessageQueue] | None:
        """The queues in Java's order, or None when no name server knows the topic, or none has ever answered."""
        asked_at, known = self._known.get(topic, (float("-inf"), None))
        if known and trio.current_time() - asked_at < self._config.load_balance_poll_name_server_interval / 1000:
            return known
        try:
            found = await self._ask(topic)
        except (RemotingError, ProtocolError) as error:
            logger.warning("no name server tells the route of %s: %s", topic, error)
            return known
        if len(self._known) >= TOPICS_KEPT_MAX:
            self._known.clear()
        self._known[topic] = (trio.current_time(), found)
        return found

    async def _ask(self, topic: str) -> list[MessageQueue] | None:
        failure: RemotingError | ProtocolError = RemotingError("namesrvAddr names no name server")
        for address in self._config.name_servers() if self.client is not None else ():
            assert self.client is not None  # noqa: S101 - the loop is empty without it
            header = GetRouteInfoRequestHeader(topic=topic, accept_standard_json_only=True)
            command = Command(RequestCode.GET_ROUTEINFO_BY_TOPIC, header=header)
            try:
                answer = await self.client.request(address, command, ASK_SECONDS)
                if answer.code == ResponseCode.TOPIC_NOT_EXIST:
                    return None
                if answer.code == ResponseCode.SUCCESS:
                    return _readable(topic, decode_route(answer.body))
                failure = RemotingError(f"{address} answered {answer.code}: {answer.remark}", address=address)
            except (RemotingError, ProtocolError) as error:
                failure = error
        raise failure


def _readable(topic: str, route: TopicRouteData) -> list[MessageQueue]:
    queues = [
        MessageQueue(topic=topic, broker_name=data.broker_name, queue_id=queue_id)
        for data in route.queue_datas
        if data.perm & PERMISSION_READ
        for queue_id in range(data.read_queue_nums)
    ]
    return sorted(queues, key=lambda queue: queue.sort_key)


class RequestModes:
    """How groups get the messages of topics, as tools have set it; a table that `Persistence` saves."""

    def __init__(self) -> None:
        self._modes = MessageRequestModes()
        self.unsaved = False
        """Whether the table differs from what was last encoded for its file."""

    def set(self, mode: SetMessageRequestModeRequestBody) -> None:
        """Keep a mode."""
        self._modes.message_request_mode_map.setdefault(mode.topic, {})[mode.consumer_group] = mode
        self.unsaved = True

    def all(self) -> MessageRequestModes:
        """Every mode that was set."""
        return self._modes

    def encode(self) -> bytes:
        """The content of messageRequestMode.json; the table counts as saved."""
        self.unsaved = False
        return encode_request_modes(self._modes, pretty=True)

    def load(self, content: bytes) -> None:
        """Take the content of messageRequestMode.json."""
        self._modes = decode_request_modes(content)
