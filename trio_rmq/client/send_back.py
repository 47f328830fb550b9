"""Bringing a message back: to its broker, which delivers it again later, or by a plain send to the group's retry topic.

The broker keeps count and dead-letters what failed too often.  The plain send is for brokers that cannot take a
message back now, and for orderly consumers that give up on one; it goes to any broker that has the retry topic.
Source: RocketMQ DefaultMQPushConsumerImpl.sendMessageBack, ConsumeMessageOrderlyService.sendMessageBack.
"""

from __future__ import annotations

import logging

from trio_rmq.client import group_calls
from trio_rmq.client.held_queue import RETRY_PREFIX
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.client.namespace import queue_with_namespace
from trio_rmq.client.queue_offsets import QueueOffsets
from trio_rmq.client.route_cache import RouteCache
from trio_rmq.errors import ProtocolError, RemotingError, ResponseError, RouteNotFoundError
from trio_rmq.remoting.client import RemotingClient

logger = logging.getLogger(__name__)

MAX_RECONSUME_TIMES = 16
"""How often the broker delivers a message again before it dead-letters it, when nobody says otherwise."""
FIRST_RETRY_LEVEL = 3
"""The delay level of a first retry; one higher each time."""
DEAD_LETTER = -1
"""The delay level that means: no more retries."""

_FAILURES = (RemotingError, ResponseError, RouteNotFoundError, ProtocolError)


class SendBack:
    """Gives messages of `group` back; with None for `max_reconsume_times` brokers take their default."""

    def __init__(
        self,
        remoting: RemotingClient,
        routes: RouteCache,
        offsets: QueueOffsets,
        group: str,
        max_reconsume_times: int | None,
    ) -> None:
        self._remoting = remoting
        self._routes = routes
        self._offsets = offsets
        self._group = group
        self._most = MAX_RECONSUME_TIMES if max_reconsume_times is None else max_reconsume_times

    async def give_back(self, message: ReceivedMessage, delay_level: int) -> bool:
        """Have it delivered again later; whether some broker took it."""
        try:
            address = await self._offsets.address(queue_with_namespace(message.namespace, message.queue))
            await group_calls.give_back(
                self._remoting, address, self._group, message, delay_level=delay_level, max_reconsume_times=self._most
            )
        except _FAILURES as error:
            logger.warning("group %s: %s goes back by a plain send: %s", self._group, message, error)
        else:
            return True
        times = self._most if delay_level == DEAD_LETTER else message.reconsume_times + 1
        level = delay_level if delay_level > 0 else FIRST_RETRY_LEVEL + message.reconsume_times
        return await self.send_to_retry(message, times, level)

    async def send_to_retry(self, message: ReceivedMessage, reconsume_times: int, delay_level: int) -> bool:
        """Send a copy to the retry topic, counted as `reconsume_times` times retried; whether a broker stored it."""
        topic = RETRY_PREFIX + self._group
        try:
            route = await self._routes.route(topic)
        except _FAILURES as error:
            logger.warning("group %s: %s cannot be sent to %s: %s", self._group, message, topic, error)
            return False
        for queue in {queue.broker_name: queue for queue in route.write_queues}.values():
            address = route.master(queue.broker_name)
            if address is None:
                continue
            try:
                await group_calls.send_retry(
                    self._remoting, address, self._group, queue, message,
                    reconsume_times=reconsume_times, max_reconsume_times=self._most, delay_level=delay_level,
                )  # fmt: skip
            except _FAILURES as error:
                logger.warning("group %s: %s was not taken: %s", self._group, message, error)
            else:
                return True
        return False
