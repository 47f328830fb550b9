"""What a test holds of an embedded broker: what it sees there, and what it does to it.

The same for every way to run one: `call` brings a plain function to where the broker runs, and its result back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Protocol, TypeVar

from trio_rmq.broker.names import dead_letter_topic
from trio_rmq.client import MessageQueue, ReceivedMessage
from trio_rmq.standalone import StandaloneReady
from trio_rmq.testing.faults import PULLS, SEND_BACKS, SENDS, Fault, Injection
from trio_rmq.testing.interposing import Exchange, Interposer
from trio_rmq.testing.memory_disk import UnsyncedDisk
from trio_rmq.testing.parked import Parked, Waiting
from trio_rmq.wire.codes import ResponseCode
from trio_rmq.wire.headers import (
    ConsumerSendMsgBackRequestHeader,
    PullMessageRequestHeader,
    SendMessageResponseHeader,
)
from trio_rmq.wire.ids import decode_offset_id

T = TypeVar("T")


class Parts:
    """What one embedded broker consists of."""

    def __init__(self, ready: StandaloneReady, broker_name: str, disk: UnsyncedDisk, interposer: Interposer) -> None:
        self.ready = ready
        self.broker_name = broker_name
        self.disk = disk
        self.interposer = interposer
        self.parked = Parked(ready.store, broker_name)


class Call(Protocol):
    """Calls a plain function where the broker runs; its result."""

    def __call__(self, function: Callable[[], T], /) -> T: ...


class BrokerHandle:
    """A running broker as its test sees it.  No method waits, but for its turn where the broker has its own thread."""

    def __init__(self, parts: Parts, call: Call) -> None:
        self.name_server = parts.ready.namesrv_address
        """`host:port` of the name server: what clients of every language are given."""
        self.address = parts.ready.broker_address
        """`host:port` of the broker, which serves TCP remoting and WebSocket."""
        self.parts = parts
        """What it consists of, to be used only where it runs."""
        self._call = call

    def __repr__(self) -> str:
        return f"<embedded broker at {self.address}, name server at {self.name_server}>"

    # What is there -----------------------------------------------------------------------------------------------

    def messages(self, topic: str) -> list[ReceivedMessage]:
        """What consumers of `topic` can have, in the order in which it was stored."""
        return self._call(lambda: self.parts.parked.messages(topic))

    def dead_letters(self, group: str) -> list[ReceivedMessage]:
        """What the consumers of `group` gave up."""
        return self.messages(dead_letter_topic(group))

    def delayed(self, topic: str | None = None) -> list[Waiting]:
        """What waits for its time - a delay level, a timer, the next try - the earliest first.

        Messages that `group` tries again wait for the topic `%RETRY%group`.
        """
        return self._call(lambda: self.parts.parked.delayed(topic))

    def half_messages(self, topic: str | None = None) -> list[ReceivedMessage]:
        """Messages of transactions that are neither committed nor rolled back."""
        return self._call(lambda: self.parts.parked.half_messages(topic))

    # What happened -----------------------------------------------------------------------------------------------

    def exchanges(self, requests: Collection[int] | None = None) -> list[Exchange]:
        """All requests of these codes and their answers, in the order of the answers; the last 10,000."""
        return self._call(lambda: self._exchanges(requests))

    def sent(self, topic: str | None = None) -> list[ReceivedMessage]:
        """Messages that their senders were told are stored, in that order, also those not delivered yet.

        A message that was sent one-way is not among them: see `messages`.
        """

        def find() -> list[ReceivedMessage]:
            found = [self.parts.parked.at(place) for place in self._places()]
            return [message for message in found if message is not None and topic in (None, message.stored.topic)]

        return self._call(find)

    def received(self, topic: str | None = None, group: str | None = None) -> list[ReceivedMessage]:
        """Messages that were handed to consumers, in that order, each as often as it was."""
        return self._call(lambda: list(self._handed_out(topic, group)))

    def retried(self, group: str | None = None) -> list[ReceivedMessage]:
        """Messages that consumers gave back to get them again, or to give them up, as they were given back."""

        def find() -> list[ReceivedMessage]:
            headers = [
                exchange.request.decode_header(ConsumerSendMsgBackRequestHeader)
                for exchange in self._exchanges(SEND_BACKS)
                if exchange.answer is not None and exchange.answer.code == ResponseCode.SUCCESS
            ]
            found = [self.parts.parked.at(header.offset) for header in headers if group in (None, header.group)]
            return [message for message in found if message is not None]

        return self._call(find)

    def _exchanges(self, requests: Collection[int] | None) -> list[Exchange]:
        exchanges = self.parts.interposer.exchanges
        return [exchange for exchange in exchanges if requests is None or exchange.request.code in requests]

    def _places(self) -> Iterator[int]:
        """The physical offset of each message whose send was answered with where it is."""
        for exchange in self._exchanges(SENDS):
            answer = exchange.answer
            if answer is not None and "msgId" in answer.ext_fields():
                for message_id in answer.decode_header(SendMessageResponseHeader).msg_id.split(","):
                    yield decode_offset_id(message_id)[1]

    def _handed_out(self, topic: str | None, group: str | None) -> Iterator[ReceivedMessage]:
        for exchange in self._exchanges(PULLS):
            answer = exchange.answer
            if answer is not None and answer.code == ResponseCode.SUCCESS:
                header = exchange.request.decode_header(PullMessageRequestHeader)
                if topic in (None, header.topic) and group in (None, header.consumer_group):
                    name = self.parts.broker_name
                    queue = MessageQueue(topic=header.topic, broker_name=name, queue_id=header.queue_id)
                    yield from ReceivedMessage.pulled(queue, bytes(answer.body))

    # What a test does to it --------------------------------------------------------------------------------------

    def inject(
        self,
        fault: Fault,
        *,
        times: int | None = 1,
        requests: Collection[int] = SENDS,
        topic: str | None = None,
        skip: int = 0,
    ) -> Injection:
        """Let the next `times` requests of these codes, `skip` of them left out, meet `fault`; None: all from now on.

        `topic`: only requests that name it.  Faults are tried in the order in which they were asked for.
        """
        injection = Injection(fault, frozenset(requests), topic, times, skip)

        def put() -> None:
            waiting = self.parts.interposer.injections
            waiting[:] = [one for one in waiting if one.times is None or one.done < one.times]
            waiting.append(injection)

        self._call(put)
        return injection

    def clear_faults(self) -> None:
        """Take back every fault: injections, a full disk, refused connections."""

        def clear() -> None:
            self.parts.interposer.injections.clear()
            self.parts.interposer.refusing = False

        self._call(clear)
        self.free_disk()

    def disconnect(self) -> int:
        """Drop every connection with the broker; how many there were."""
        return self._call(self.parts.interposer.disconnect)

    def refuse_connections(self, refuse: bool = True) -> None:
        """Whether the broker closes new connections as soon as they are made; those that are open stay."""

        def change() -> None:
            self.parts.interposer.refusing = refuse

        self._call(change)

    def fill_disk(self) -> None:
        """Let the broker's disk have no room: sends are answered 14, all else goes on."""

        def fill() -> None:
            self.parts.disk.full = True

        self._call(fill)

    def free_disk(self) -> None:
        """Let there be room again; sends are taken as soon as the broker has looked, which it does at once."""

        def free() -> None:
            if self.parts.disk.full:
                self.parts.disk.full = False
                self.parts.ready.store.delete_expired_soon()

        self._call(free)

    def rebalance(self, group: str) -> int:
        """Have the members of a consumer group share their queues anew, now; how many were told."""
        return self._call(lambda: self.parts.interposer.rebalance(group))
