"""A name server and broker in one, of which a test decides every answer: what is stored, locked, refused, away.

Plain state in one loop.  `ScriptedServer` runs it in a thread, for clients of any backend; on virtual time it is served
like any other server.  It does no more than a consumer needs: routes, heartbeats, pulls, offsets, locks, send-backs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from trio_rmq.errors import RequestError
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.session import Session
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import FLAG_ONEWAY, Command
from trio_rmq.wire.groups import (
    GetConsumerListByGroupResponseBody,
    LockBatchResponseBody,
    MessageQueue,
    decode_lock_request,
    decode_unlock_request,
    encode_consumer_list,
    encode_lock_response,
)
from trio_rmq.wire.heartbeat import HeartbeatData, decode_heartbeat
from trio_rmq.wire.record import encode_record, encode_topic
from trio_rmq.wire.routes import BrokerData, QueueData, TopicRouteData, encode_route

T = TypeVar("T")

NAME = "scripted"
HOST = (b"\x7f\x00\x00\x01", 10911)


def scripted_queue(topic: str, queue_id: int = 0) -> MessageQueue:
    """A queue of the scripted broker."""
    return MessageQueue(topic=topic, broker_name=NAME, queue_id=queue_id)


@dataclass
class Sent:
    """A plain send that arrived."""

    header: headers.SendMessageRequestHeader
    body: bytes


@dataclass
class ScriptedBroker:
    """Queues by topic and id; `refuse` holds the request codes that are answered SYSTEM_BUSY."""

    address: str = ""
    queue_counts: dict[str, int] = field(default_factory=dict)
    stored: dict[MessageQueue, list[tuple[bytes, bytes, int]]] = field(default_factory=dict)
    first: dict[MessageQueue, int] = field(default_factory=dict)
    offsets: dict[MessageQueue, int] = field(default_factory=dict)
    commits: list[tuple[MessageQueue, int]] = field(default_factory=list)
    members: dict[str, list[str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    sessions: dict[str, Session] = field(default_factory=dict)
    heartbeats: list[HeartbeatData] = field(default_factory=list)
    locks: dict[MessageQueue, str] = field(default_factory=dict)
    lock_requests: list[list[MessageQueue]] = field(default_factory=list)
    unlocked: list[MessageQueue] = field(default_factory=list)
    given_back: list[headers.ConsumerSendMsgBackRequestHeader] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    pulls: list[headers.PullMessageRequestHeader] = field(default_factory=list)
    refuse: set[int] = field(default_factory=set)
    seen: list[int] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)

    def append(
        self, topic: str, *bodies: bytes, queue_id: int = 0, properties: bytes = b"", reconsume_times: int = 0
    ) -> None:
        """Store messages and wake held pulls."""
        place = scripted_queue(topic, queue_id)
        self.queue_counts.setdefault(topic, 1)
        self.stored.setdefault(place, []).extend((body, properties, reconsume_times) for body in bodies)
        self.tell()

    def tell(self) -> None:
        """Wake held pulls and who waits in `until`."""
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, wanted: Callable[[], bool]) -> None:
        """Wait, in the broker's loop, until something holds; asked after each request."""
        while not wanted():
            await self.changed.wait()

    def record(self, place: MessageQueue, offset: int) -> bytes:
        """A stored message's record."""
        body, properties, reconsume_times = self.stored[place][offset - self.first.get(place, 0)]
        return encode_record(
            encode_topic(place.topic)[0], place.queue_id, offset, 1_000 * place.queue_id + offset, 1, HOST, body,
            properties, 0, 0, 1, HOST, reconsume_times,
        )  # fmt: skip

    def reset(self, offsets: dict[MessageQueue, int], body: bytes, *, group: str) -> None:
        """Tell every client to begin anew elsewhere."""
        header = headers.ResetOffsetRequestHeader(group=group, topic=next(iter(offsets)).topic, timestamp=0)
        code = RequestCode.RESET_CONSUMER_CLIENT_OFFSET
        for session in self.sessions.values():
            session.send_nowait(Command(code, header=header, body=body, flag=FLAG_ONEWAY))

    def notify(self) -> None:
        """Tell every client that members came or went."""
        for session in self.sessions.values():
            header = headers.NotifyConsumerIdsChangedRequestHeader(consumer_group="any")
            session.send_nowait(Command(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, header=header, flag=FLAG_ONEWAY))

    # -- handlers -----------------------------------------------------------------------------------------------

    def table(self) -> HandlerTable:
        """The handlers by code."""
        table = HandlerTable()
        for code, handler in (
            (RequestCode.GET_ROUTEINFO_BY_TOPIC, self._route),
            (RequestCode.HEART_BEAT, self._heartbeat),
            (RequestCode.UNREGISTER_CLIENT, self._unregister),
            (RequestCode.GET_CONSUMER_LIST_BY_GROUP, self._member_list),
            (RequestCode.QUERY_CONSUMER_OFFSET, self._query_offset),
            (RequestCode.UPDATE_CONSUMER_OFFSET, self._update_offset),
            (RequestCode.GET_MIN_OFFSET, self._min_offset),
            (RequestCode.GET_MAX_OFFSET, self._max_offset),
            (RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, self._search),
            (RequestCode.PULL_MESSAGE, self._pull),
            (RequestCode.LOCK_BATCH_MQ, self._lock),
            (RequestCode.UNLOCK_BATCH_MQ, self._unlock),
            (RequestCode.CONSUMER_SEND_MSG_BACK, self._give_back),
            (RequestCode.SEND_MESSAGE, self._send),
        ):
            table.register(code, self._noted(handler))
        return table

    def _noted(
        self, handler: Callable[[Session, Command], Command | Later]
    ) -> Callable[[Session, Command], Command | Later]:
        def handle(session: Session, request: Command) -> Command | Later:
            self.seen.append(request.code)
            if request.code in self.refuse:
                self.tell()
                raise RequestError(ResponseCode.SYSTEM_BUSY, "refused by the script")
            answer = handler(session, request)
            self.tell()
            return answer

        return handle

    def _route(self, session: Session, request: Command) -> Command:
        topic = request.decode_header(headers.GetRouteInfoRequestHeader).topic
        count = 1 if topic.startswith("%RETRY%") else self.queue_counts.get(topic)
        if count is None:
            raise RequestError(ResponseCode.TOPIC_NOT_EXIST, "no such topic")
        queues = QueueData(broker_name=NAME, read_queue_nums=count, write_queue_nums=count, perm=6)
        broker = BrokerData(broker_name=NAME, cluster="c", broker_addrs={0: self.address})
        data = TopicRouteData(broker_datas=[broker], queue_datas=[queues])
        return request.reply(body=encode_route(data, standard_json=True))

    def _heartbeat(self, session: Session, request: Command) -> Command:
        data = decode_heartbeat(request.body)
        self.heartbeats.append(data)
        self.sessions[data.client_id] = session
        for group in data.consumer_data_set:
            members = self.members.setdefault(group.group_name, [])
            if data.client_id not in members:
                members.append(data.client_id)
                self.notify()
        return request.reply()

    def _unregister(self, session: Session, request: Command) -> Command:
        header = request.decode_header(headers.UnregisterClientRequestHeader)
        self.sessions.pop(header.client_id, None)
        members = self.members.get(header.consumer_group or "", [])
        if header.client_id in members:
            members.remove(header.client_id)
            self.notify()
        return request.reply()

    def _member_list(self, session: Session, request: Command) -> Command:
        group = request.decode_header(headers.GetConsumerListByGroupRequestHeader).consumer_group
        body = GetConsumerListByGroupResponseBody(consumer_id_list=self.members.get(group, []) + self.others)
        return request.reply(body=encode_consumer_list(body))

    def _query_offset(self, session: Session, request: Command) -> Command:
        header = request.decode_header(headers.QueryConsumerOffsetRequestHeader)
        offset = self.offsets.get(scripted_queue(header.topic, header.queue_id))
        if offset is None:
            raise RequestError(ResponseCode.QUERY_NOT_FOUND, "none")
        return request.reply(header=headers.QueryConsumerOffsetResponseHeader(offset=offset))

    def _update_offset(self, session: Session, request: Command) -> Command:
        header = request.decode_header(headers.UpdateConsumerOffsetRequestHeader)
        place = scripted_queue(header.topic, header.queue_id)
        self.offsets[place] = header.commit_offset
        self.commits.append((place, header.commit_offset))
        return request.reply()

    def _min_offset(self, session: Session, request: Command) -> Command:
        header = request.decode_header(headers.GetMinOffsetRequestHeader)
        offset = self.first.get(scripted_queue(header.topic, header.queue_id), 0)
        return request.reply(header=headers.GetMinOffsetResponseHeader(offset=offset))

    def _max_offset(self, session: Session, request: Command) -> Command:
        header = request.decode_header(headers.GetMaxOffsetRequestHeader)
        offset = self._after(scripted_queue(header.topic, header.queue_id))
        return request.reply(header=headers.GetMaxOffsetResponseHeader(offset=offset))

    def _search(self, session: Session, request: Command) -> Command:
        header = request.decode_header(headers.SearchOffsetRequestHeader)
        return request.reply(header=headers.SearchOffsetResponseHeader(offset=header.timestamp))

    def _after(self, place: MessageQueue) -> int:
        return self.first.get(place, 0) + len(self.stored.get(place, ()))

    def _pull(self, session: Session, request: Command) -> Command | Later:
        header = request.decode_header(headers.PullMessageRequestHeader)
        self.pulls.append(header)
        place = scripted_queue(header.topic, header.queue_id)
        if header.sys_flag & 1:
            self.offsets[place] = header.commit_offset
        if header.queue_offset == self._after(place):

            async def hold() -> Sequence[Command]:
                with trio.move_on_after(header.suspend_timeout_millis / 1000):
                    await self.until(lambda: header.queue_offset != self._after(place))
                return [self._pulled(request, header, place)]

            return Later(hold, held=True)
        return self._pulled(request, header, place)

    def _pulled(self, request: Command, header: headers.PullMessageRequestHeader, place: MessageQueue) -> Command:
        first, after, offset = self.first.get(place, 0), self._after(place), header.queue_offset
        code, end = ResponseCode.SUCCESS, min(offset + header.max_msg_nums, after)
        if not first <= offset <= after:
            code, end = ResponseCode.PULL_OFFSET_MOVED, min(max(offset, first), after)
        elif offset == after:
            code = ResponseCode.PULL_NOT_FOUND
        body = b"".join(self.record(place, at) for at in range(offset, end)) if code == ResponseCode.SUCCESS else b""
        told = headers.PullMessageResponseHeader(
            suggest_which_broker_id=0, next_begin_offset=end, min_offset=first, max_offset=after
        )
        return request.reply(int(code), header=told, body=body)

    def _lock(self, session: Session, request: Command) -> Command:
        asked = decode_lock_request(request.body)
        self.lock_requests.append(asked.mq_set)
        mine = [place for place in asked.mq_set if self.locks.setdefault(place, asked.client_id) == asked.client_id]
        return request.reply(body=encode_lock_response(LockBatchResponseBody(lock_ok_mq_set=mine)))

    def _unlock(self, session: Session, request: Command) -> Command:
        asked = decode_unlock_request(request.body)
        for place in asked.mq_set:
            if self.locks.get(place) == asked.client_id:
                del self.locks[place]
                self.unlocked.append(place)
        return request.reply()

    def _give_back(self, session: Session, request: Command) -> Command:
        self.given_back.append(request.decode_header(headers.ConsumerSendMsgBackRequestHeader))
        return request.reply()

    def _send(self, session: Session, request: Command) -> Command:
        header = request.decode_header(headers.SendMessageRequestHeader)
        self.sent.append(Sent(header, bytes(request.body)))
        return request.reply(header=headers.SendMessageResponseHeader(msg_id="1", queue_id=0, queue_offset=0))

    async def serve(self, address: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve at "host:port" until cancelled."""
        async with trio.open_nursery() as nursery:
            (self.address,) = await nursery.start(serve_remoting, [address], self.table())
            task_status.started()


class ScriptedServer:
    """A scripted broker in a thread's loop; `name_server` is where clients find it."""

    def __init__(self, broker: ScriptedBroker, token: trio.lowlevel.TrioToken, nursery: trio.Nursery) -> None:
        self.broker = broker
        self.name_server = broker.address
        self._token = token
        self._nursery = nursery

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the broker's loop."""
        answers: queue.Queue[T] = queue.Queue()
        self._token.run_sync_soon(lambda: answers.put(function()))
        return answers.get(timeout=10)

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run an async function in the broker's loop; blocks, so for use in a worker thread."""
        answers: queue.Queue[T] = queue.Queue()

        async def answer() -> None:
            with trio.move_on_after(10):
                answers.put(await function())

        self._token.run_sync_soon(self._nursery.start_soon, answer)
        return answers.get(timeout=12)

    def append(self, topic: str, *bodies: bytes, queue_id: int = 0, properties: bytes = b"") -> None:
        """ScriptedBroker.append."""
        self.call(lambda: self.broker.append(topic, *bodies, queue_id=queue_id, properties=properties))

    def until(self, wanted: Callable[[], object]) -> None:
        """Block until something holds at the broker."""
        self.run(lambda: self.broker.until(lambda: bool(wanted())))

    def ask(self, command: Command) -> Command:
        """Ask the one client there is, and wait for its answer."""

        async def ask() -> Command:
            (session,) = self.broker.sessions.values()
            return await session.request(command, 5.0)

        return self.run(ask)


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """A scripted broker served on a free port, in a thread."""
    started: queue.Queue[tuple[ScriptedServer, trio.CancelScope]] = queue.Queue()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            broker = ScriptedBroker()
            await nursery.start(broker.serve, "127.0.0.1:0")
            server = ScriptedServer(broker, trio.lowlevel.current_trio_token(), nursery)
            started.put((server, nursery.cancel_scope))

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    server, scope = started.get(timeout=10)
    try:
        yield server
    finally:
        server.call(scope.cancel)
        thread.join(timeout=10)
