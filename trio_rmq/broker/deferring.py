"""What a message asks for instead of being delivered at once: the end of a transaction, a delay level, a time.

Such a message is stored under a system topic, its target in REAL_TOPIC and REAL_QID, and a service stores it again
under its own topic.  Only values here; a message that asks for nothing of the kind never comes this way.
Source: RocketMQ TransactionalMessageBridge, HookUtils.handleScheduleMessage (5.3.3), RecallMessageHandle.
"""

from __future__ import annotations

import base64
import binascii
from enum import Enum
from typing import NamedTuple

from trio_rmq.broker import names
from trio_rmq.broker.delay import delayed_properties
from trio_rmq.broker.half_messages import half_properties
from trio_rmq.clock import wall_ms
from trio_rmq.config import BrokerConfig, MessageStoreConfig
from trio_rmq.errors import RequestError
from trio_rmq.store.dispatch import TIMER_RECALL
from trio_rmq.store.messages import NewMessage
from trio_rmq.wire import properties as prop
from trio_rmq.wire.codes import ResponseCode

TIMER_QUEUE_ID = 0
_HANDLE_VERSION = "v1"
_TIMERS = ((prop.TIMER_DELAY_SEC, 1000), (prop.TIMER_DELAY_MS, 1), (prop.TIMER_DELIVER_MS, 0))
"""The properties that ask for a time, in the order in which they count, with their unit in ms; 0: a time itself."""


class Kind(Enum):
    """What a message waits for."""

    HALF = "the end of its transaction"
    LEVEL = "its delay level"
    TIMER = "its time"


class Deferral(NamedTuple):
    """`value` is the delay level, or the time of delivery in ms since 1970."""

    kind: Kind
    value: int = 0


class DeferredMessage(NewMessage, gc=False):
    """A message as it is stored to wait.  Its sender is told the queue it was sent to, and how to name it later."""

    answer_queue_id: int = 0
    recall_handle: str | None = None
    transaction_id: str | None = None


class RecallHandle(NamedTuple):
    """What names a message that waits for its time; `timestamp_ms` is one more than its time of delivery."""

    topic: str
    broker_name: str
    timestamp_ms: int
    unique_key: str

    def encode(self) -> str:
        """The text that the sender gets."""
        words = (_HANDLE_VERSION, self.topic, self.broker_name, str(self.timestamp_ms), self.unique_key)
        return base64.urlsafe_b64encode(" ".join(words).encode()).decode()


def decode_recall_handle(text: str) -> RecallHandle:
    """The handle in a request; RequestError ILLEGAL_OPERATION, in RocketMQ's words, when it is none."""
    try:
        words = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        words = ""
    version, *rest = words.split(" ")
    if version != _HANDLE_VERSION or len(rest) < 4:
        raise RequestError(ResponseCode.ILLEGAL_OPERATION, "recall handle is invalid")
    topic, broker_name, timestamp, unique_key = rest[:4]
    is_number = timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 19
    return RecallHandle(topic, broker_name, int(timestamp) if is_number else -1, unique_key)


def delete_key(topic: str, unique_key: str) -> str:
    """What a recall's TIMER_DEL_UNIQKEY says: whose message with which unique key."""
    return f"{topic}+{unique_key}"


class Deferring:
    """Finds out what messages wait for, and makes of them what is stored meanwhile."""

    def __init__(self, config: BrokerConfig, store_config: MessageStoreConfig, *, max_delay_level: int) -> None:
        self._config = config
        self._store_config = store_config
        self._max_delay_level = max_delay_level

    def of_send(self, text: str, reconsume_times: int) -> Deferral | None:
        """What a message with these properties waits for; None for nothing.  RequestError says why it may not."""
        is_half = prop.TRANSACTION_PREPARED in text and prop.flag_property(text, prop.TRANSACTION_PREPARED, False)
        if not is_half or (reconsume_times and self.delay_level(text)):  # sent back by a client before 4.6.1
            return self.of_commit(text)
        if self._config.reject_transaction_message:
            raise RequestError(
                ResponseCode.NO_PERMISSION,
                f"the broker[{self._config.broker_ip1}] sending transaction message is forbidden: "
                "set rejectTransactionMessage=false, or send plain messages",
            )
        self._timer(text)  # what its commit would refuse is refused now
        return Deferral(Kind.HALF)

    def of_commit(self, text: str) -> Deferral | None:
        """What a committed message waits for now; a timer counts from now."""
        level = self.delay_level(text) if prop.DELAY in text else 0
        if level:
            return Deferral(Kind.LEVEL, level)
        due_ms = self._timer(text)
        return None if due_ms is None else Deferral(Kind.TIMER, due_ms)

    def delay_level(self, text: str) -> int:
        """The delay level that the properties ask for, at most the highest there is; 0 for none."""
        value = prop.property_of(text, prop.DELAY)
        if value is None:
            return 0
        try:
            level = int(value)
        except ValueError:
            raise RequestError(
                ResponseCode.MESSAGE_ILLEGAL,
                f"the delay level {value!r} is no number from 1 to {self._max_delay_level}",
            ) from None
        return min(max(level, 0), self._max_delay_level)

    def _timer(self, text: str) -> int | None:
        """The time that the properties ask for, ms since 1970; None when they ask for none or it has come."""
        if "TIMER_DE" not in text or prop.property_of(text, prop.TIMER_OUT_MS) is not None:  # it was delivered once
            return None
        now_ms = wall_ms()
        name, unit_ms = next(
            (pair for pair in _TIMERS if prop.property_of(text, pair[0]) is not None), (prop.TIMER_DELIVER_MS, 0)
        )
        value = prop.property_of(text, name)
        if value is None:
            return None
        if not self._store_config.timer_wheel_enable:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR, "accurate timer message is not enabled, timerWheelEnable is false"
            )
        max_ms = self._store_config.timer_max_delay_sec * 1000
        try:
            number = int(value)
        except ValueError:
            raise _illegal_timer(max_ms, f"{name} is {value[:50]!r}, no number") from None
        due_ms = now_ms + number * unit_ms if unit_ms else number
        if due_ms <= now_ms:
            if prop.property_of(text, prop.TIMER_DEL_UNIQUE_KEY) is not None:
                raise _illegal_timer(max_ms, "the message to recall was due already")
            return None
        if due_ms - now_ms > max_ms:
            raise _illegal_timer(max_ms, f"this one is {due_ms - now_ms}ms")
        if unit_ms and due_ms % 1000 == 0:
            due_ms += 1  # whole seconds in TIMER_OUT_MS mean that Apache's broker rounded them
        return due_ms

    def deferred(self, deferral: Deferral, message: NewMessage) -> DeferredMessage:
        """The message as it is stored to wait."""
        text = message.properties if isinstance(message.properties, str) else message.properties.decode()
        name, queue_id = message.topic, message.queue_id
        topic, waiting_queue_id, code = names.HALF_TOPIC, 0, message.tags_code
        handle = transaction_id = None
        if deferral.kind is Kind.HALF:
            text = half_properties(text, name, queue_id)
            transaction_id = prop.property_of(text, prop.UNIQUE_KEY)
        elif deferral.kind is Kind.LEVEL:
            for timer in (prop.TIMER_DELIVER_MS, prop.TIMER_DELAY_SEC, prop.TIMER_DELAY_MS):
                text = prop.remove_property(text, timer)
            text = delayed_properties(text, deferral.value, name, queue_id)
            topic, waiting_queue_id = names.SCHEDULE_TOPIC, deferral.value - 1
        else:
            due_ms = deferral.value
            text = prop.with_property(text, prop.TIMER_OUT_MS, str(due_ms))
            text = prop.with_property(text, prop.REAL_TOPIC, name)
            text = prop.with_property(text, prop.REAL_QUEUE_ID, str(queue_id))
            unique_key = prop.property_of(text, prop.UNIQUE_KEY)
            if unique_key is not None and not name.startswith(names.RETRY_PREFIX):
                handle = RecallHandle(name, self._config.broker_name, due_ms + 1, unique_key).encode()
            is_recall = prop.property_of(text, prop.TIMER_DEL_UNIQUE_KEY) is not None
            code = due_ms + TIMER_RECALL if is_recall else due_ms
            topic, waiting_queue_id = names.TIMER_TOPIC, TIMER_QUEUE_ID
        return DeferredMessage(
            topic,
            waiting_queue_id,
            message.body,
            text,
            message.flag,
            message.sys_flag,
            message.born_timestamp_ms,
            message.born_host,
            message.reconsume_times,
            message.prepared_transaction_offset,
            code,
            message.wait_for_store,
            queue_id,
            handle,
            transaction_id,
        )

    def scheduled(self, message: NewMessage) -> NewMessage:
        """A committed message, or what is stored in its place until it is to be delivered."""
        properties = message.properties
        text = properties if isinstance(properties, str) else properties.decode("utf-8", "replace")
        if prop.DELAY not in text and "TIMER_DE" not in text:
            return message
        deferral = self.of_commit(text)
        return message if deferral is None else self.deferred(deferral, message)


def _illegal_timer(max_ms: int, why: str) -> RequestError:
    return RequestError(
        ResponseCode.MESSAGE_ILLEGAL,
        f"timer message illegal, the delay time should not be bigger than the max delay {max_ms}ms; or if set del msg, "
        f"the delay time should be bigger than the current time: {why}",
    )
