"""Being a member of a consumer group: the heartbeats that tell brokers of it, and who else is one.

Owner of `subscriptions` is the consumer; this object only tells of them.  Source: RocketMQ MQClientInstance.
"""

from __future__ import annotations

from contextlib import suppress

import anyio

from trio_rmq.client import group_calls
from trio_rmq.client.presence import HEARTBEAT_SECONDS, HeartbeatRound
from trio_rmq.client.route_cache import RouteCache
from trio_rmq.errors import RemotingError, ResponseError, RouteNotFoundError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.heartbeat import (
    CONSUME_FROM_FIRST_OFFSET,
    CONSUME_FROM_LAST_OFFSET,
    CONSUME_FROM_TIMESTAMP,
    EXPRESSION_TAG,
    ConsumerData,
    HeartbeatData,
    SubscriptionData,
)


class GroupMembership:
    """One client's membership of `group`; with no subscriptions it tells nobody anything."""

    def __init__(
        self,
        remoting: RemotingClient,
        routes: RouteCache,
        group: str,
        client_id: str,
        *,
        consume_type: str,
        message_model: str,
        from_first: bool,
        from_timestamp_ms: int | None,
    ) -> None:
        self.subscriptions: dict[str, SubscriptionData] = {}
        self._remoting = remoting
        self._routes = routes
        self._group = group
        self._client_id = client_id
        self._consume_type = consume_type
        self._message_model = message_model
        self._from_where = CONSUME_FROM_FIRST_OFFSET if from_first else CONSUME_FROM_LAST_OFFSET
        if from_timestamp_ms is not None:
            self._from_where = CONSUME_FROM_TIMESTAMP
        self._told: set[str] = set()
        self._heartbeats = HeartbeatRound(remoting, f"group {group}")

    async def run_heartbeat(self) -> None:
        """Tell every broker every 30 seconds; until cancelled."""
        while True:
            await anyio.sleep(HEARTBEAT_SECONDS)
            await self.introduce()

    async def introduce(self) -> None:
        """Tell every broker of the subscribed topics now; one that does not answer is said in the log."""
        for topic in list(self.subscriptions):
            with suppress(RemotingError, RouteNotFoundError):
                await self._routes.route(topic)
        data = HeartbeatData(
            client_id=self._client_id,
            consumer_data_set=[
                ConsumerData(
                    group_name=self._group,
                    consume_type=self._consume_type,
                    message_model=self._message_model,
                    consume_from_where=self._from_where,
                    subscription_data_set=list(self.subscriptions.values()),
                )
            ],
        )
        addresses = self._routes.broker_addresses()
        self._told |= addresses
        await self._heartbeats.tell(addresses, data)

    async def check(self, subscription: SubscriptionData) -> None:
        """Have a broker of the topic read a subscription that is not by tags, before it is used.

        ResponseError when it cannot be read, or filters of its type are not served.  Unknown topics and brokers that do
        not answer tell nothing: then the pulls will.  Source: RocketMQ MQClientInstance.checkClientInBroker.
        """
        if subscription.expression_type == EXPRESSION_TAG:
            return
        try:
            route = await self._routes.route(subscription.topic)
        except (RemotingError, RouteNotFoundError):
            return
        for address in filter(None, map(route.master, route.brokers)):
            with suppress(RemotingError):
                await group_calls.check_subscription(
                    self._remoting, address, self._client_id, self._group, subscription
                )
                return

    async def members(self, topic: str) -> list[str]:
        """The client ids of the group's members, in order, by one of the topic's brokers.

        RouteNotFoundError, RemotingError or ResponseError when none can say.
        """
        route = await self._routes.route(topic)
        failure: RemotingError | ResponseError = RemotingError(f"no broker of {topic} has a master now")
        for address in filter(None, map(route.master, route.brokers)):
            try:
                return sorted(await group_calls.member_ids(self._remoting, address, self._group))
            except (RemotingError, ResponseError) as error:
                failure = error
        raise failure

    async def say_goodbye(self) -> None:
        """Leave the group at every broker that was told of it."""
        for address in self._told:
            with suppress(RemotingError, ResponseError):
                await group_calls.unregister(self._remoting, address, self._client_id, self._group)
