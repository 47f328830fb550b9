"""What brokers ask of a push consumer, answered as Java's client does.

Members changed (40), reset of offsets (220), offsets in memory (221), running info (307), consume this one message
(309).  Source: RocketMQ ClientRemotingProcessor, MQClientInstance, ConsumeMessage*Service.consumeMessageDirectly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import anyio

from trio_rmq.client.consuming import Consuming, Delivery
from trio_rmq.client.held_queue import HeldQueue
from trio_rmq.client.listening import heard, later_of
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.client.rebalance import Rebalance
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ClientError, RequestError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.connection import Connection
from trio_rmq.wire import headers, running
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import PROTOCOL_VERSION, Command
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.heartbeat import CONSUME_PASSIVELY, SubscriptionData
from trio_rmq.wire.record import decode_record
from trio_rmq.wire.stats import GetConsumerStatusBody, decode_reset_offset, encode_consumer_status

logger = logging.getLogger(__name__)

VERSION_NAMES = {409: "V4_9_8"}


class BrokerCalls:
    """The answers of one consumer, whose parts it only reads; a reset it hands to the rebalance.

    `properties` gives the consumer's settings as RocketMQ's tools show them; `subscriptions` and `held` are as of now.
    """

    def __init__(
        self,
        delivery: Delivery,
        consuming: Callable[[], Consuming],
        rebalance: Rebalance,
        held: Mapping[MessageQueue, HeldQueue],
        subscriptions: Mapping[str, SubscriptionData],
        properties: Callable[[], dict[str, str]],
        *,
        orderly: bool,
        namespace: str = "",
    ) -> None:
        self._delivery = delivery
        self._consuming = consuming
        self._rebalance = rebalance
        self._held = held
        self._subscriptions = subscriptions
        self._properties = properties
        self._orderly = orderly
        self._namespace = namespace

    def register(self, remoting: RemotingClient) -> None:
        """Answer from now on."""
        remoting.register(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, self.members_changed)
        remoting.register(RequestCode.RESET_CONSUMER_CLIENT_OFFSET, self.reset)
        remoting.register(RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, self.status)
        remoting.register(RequestCode.GET_CONSUMER_RUNNING_INFO, self.running_info)
        remoting.register(RequestCode.CONSUME_MESSAGE_DIRECTLY, self.consume_directly)

    async def members_changed(self, connection: Connection, command: Command) -> None:
        """40: a round of rebalancing; no answer."""
        self._rebalance.soon()

    async def reset(self, connection: Connection, command: Command) -> None:
        """220: the named queues begin anew at their offsets; what is unfinished of them is forgotten.  No answer."""
        header = command.decode_header(headers.ResetOffsetRequestHeader)
        if header.group != self._delivery.group:
            logger.info("a reset for the group %s, which is not here", header.group)
            return
        for queue, offset in decode_reset_offset(command.body).offset_table.items() if command.body else ():
            if queue.topic == header.topic:
                logger.warning("group %s: the broker resets %s to %d", header.group, queue, offset)
                self._rebalance.restart(queue, offset)

    async def status(self, connection: Connection, command: Command) -> Command:
        """221: where this member is in the queues of a topic that it holds; empty for another group."""
        header = command.decode_header(headers.GetConsumerStatusRequestHeader)
        table: dict[MessageQueue, int] = {}
        if header.group == self._delivery.group:
            for queue, held in self._held.items():
                if queue.topic == header.topic and self._rebalance.remember(held):
                    table[queue] = held.state.commit_offset
        return command.reply(body=encode_consumer_status(GetConsumerStatusBody(message_queue_table=table)))

    async def running_info(self, connection: Connection, command: Command) -> Command:
        """307: settings, subscriptions, queues and figures; as `jstack` the listener calls that run."""
        header = command.decode_header(headers.GetConsumerRunningInfoRequestHeader)
        self._check_group(header.consumer_group)
        now, now_ms = anyio.current_time(), wall_ms()
        properties = self._properties() | {
            running.PROP_CONSUME_ORDERLY: "true" if self._orderly else "false",
            running.PROP_CONSUME_TYPE: CONSUME_PASSIVELY,
            running.PROP_CLIENT_VERSION: VERSION_NAMES.get(PROTOCOL_VERSION, str(PROTOCOL_VERSION)),
        }
        return command.reply(
            body=running.encode_running_info(
                running.ConsumerRunningInfo(
                    jstack="\n".join(self._consuming().describe()) if header.jstack_enable else None,
                    mq_table={
                        queue: _queue_info(self._held[queue], now, now_ms, locks=self._orderly)
                        for queue in sorted(self._held, key=lambda queue: queue.sort_key)
                    },
                    properties=properties,
                    status_table={
                        topic: self._delivery.figures.of(topic, now).status(now)
                        for topic in sorted(self._subscriptions)
                    },
                    subscription_set=[self._subscriptions[topic] for topic in sorted(self._subscriptions)],
                )
            )
        )

    async def consume_directly(self, connection: Connection, command: Command) -> Command:
        """309: give the message in the body to its listener now; it has no part in offsets and retries."""
        header = command.decode_header(headers.ConsumeMessageDirectlyResultRequestHeader)
        self._check_group(header.consumer_group)
        stored = decode_record(command.body)
        queue = MessageQueue(topic=stored.topic, broker_name=header.broker_name or "", queue_id=stored.queue_id)
        message = ReceivedMessage.from_record(stored, queue, self._namespace)
        started = anyio.current_time()
        result, remark = await self._consume(message)
        spent_ms = round((anyio.current_time() - started) * 1000)
        return command.reply(
            body=running.encode_directly_result(
                running.ConsumeMessageDirectlyResult(
                    order=self._orderly, consume_result=result, remark=remark, spent_time_mills=spent_ms
                )
            )
        )

    async def _consume(self, message: ReceivedMessage) -> tuple[str, str | None]:
        listener = self._delivery.listeners.get(message.full_topic)
        if listener is None:
            return running.CR_THROW_EXCEPTION, f"there is no listener for {message.topic}"
        outcome, error = await heard(self._delivery.group, listener, [message])
        try:
            later = later_of(outcome)
        except ClientError as wrong:
            error = wrong
        if error is not None:
            return running.CR_THROW_EXCEPTION, f"{type(error).__name__}: {error}"
        if later is None or later.consumed_count > 0:
            return running.CR_SUCCESS, None
        return running.CR_LATER, None

    def _check_group(self, group: str) -> None:
        if group != self._delivery.group:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"The Consumer Group <{group}> not exist in this consumer")


def _queue_info(held: HeldQueue, now: float, now_ms: int, *, locks: bool) -> running.ProcessQueueInfo:
    state = held.state

    def wall(at: float) -> int:
        return now_ms - round((now - at) * 1000)

    info = running.ProcessQueueInfo(
        commit_offset=state.commit_offset,
        droped=held.leaving,
        last_consume_timestamp=wall(held.last_consume),
        last_lock_timestamp=wall(held.locked_at),
        last_pull_timestamp=wall(held.last_pull),
        locked=locks and held.is_locked(now),
    )
    if state.last_offset is not None:
        info.cached_msg_count = state.count
        info.cached_msg_min_offset = state.commit_offset
        info.cached_msg_max_offset = state.last_offset
        info.cached_msg_size_mib = state.size_bytes >> 20
    if held.at_work:
        info.transaction_msg_count = len(held.at_work)
        info.transaction_msg_min_offset = held.at_work[0].queue_offset
        info.transaction_msg_max_offset = held.at_work[-1].queue_offset
    return info
