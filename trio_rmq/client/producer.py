"""The producer: sends messages, each acknowledged before `send` returns.

Queues are used in turn; a try that fails goes to another broker, at most `retry_times` times more, all under one
deadline (`sending.py`).  Any number of tasks may send at once: their requests share connections and writes.  Tasks and
what they own: one keeps routes fresh, one tells brokers that the producer lives; both end with the block.
Source of the rules: RocketMQ DefaultMQProducer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import TracebackType

import anyio
import anyio.abc

from trio_rmq.client.auto_batch import AutoBatch, AutoBatcher
from trio_rmq.client.batches import make_batch
from trio_rmq.client.compression import Compression
from trio_rmq.client.instance import name_server_list, new_client_id
from trio_rmq.client.latency_fault import LATENCY_TABLE, LatencyFaults
from trio_rmq.client.many import SENDS_AT_ONCE, GatheredSends, send_singly
from trio_rmq.client.message import Message, ReceivedMessage, SendResult
from trio_rmq.client.names import check_producer_group
from trio_rmq.client.namespace import with_namespace
from trio_rmq.client.outgoing import Outgoing, OutgoingMaker
from trio_rmq.client.presence import ProducerPresence
from trio_rmq.client.queue_choice import QueueSelector, QueueTurns, select_by_hash
from trio_rmq.client.recall_handle import broker_of_handle
from trio_rmq.client.replies import ReplyMessage
from trio_rmq.client.requests import Requests
from trio_rmq.client.route_cache import TEMPLATE_QUEUES, RouteCache
from trio_rmq.client.send_interceptors import SendInterceptor
from trio_rmq.client.sending import Sender, SendSettings, Tried
from trio_rmq.client.thread_sending import ThreadSender
from trio_rmq.client.tracing import SendTracer, TraceSender, trace_topic_of
from trio_rmq.errors import ClientError, RequestTimeoutError, ResponseError, SendError
from trio_rmq.limits import BODY_SIZE_MAX_BYTES
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.connection import Connection, ConnectionGroup
from trio_rmq.remoting.tls_context import TlsContext
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.headers import RecallMessageRequestHeader, RecallMessageResponseHeader

GOODBYE_SECONDS = 1.0
"""Longest goodbye to the brokers when a producer closes."""
DEFAULT_GROUP = "DEFAULT_PRODUCER"
DEFAULT_COMPRESSION = Compression()


class Producer:
    """Sends messages; an async context manager.

        async with Producer(name_servers="127.0.0.1:9876") as producer:
            result = await producer.send(Message("Greetings", b"hello"))

    `name_servers` is `host:port` or `ws://host:port`, several separated by `;`, or a sequence of them, or an address
    server's URL; without it the environment's NAMESRV_ADDR counts.  `timeout_seconds` bounds a send with all its tries,
    `try_timeout_seconds` each try but the last.  `retry_when_not_stored` tries another broker also when one stored the
    message less safely than it is configured to.  `send_latency_fault_enable` stays away from slow brokers by
    `latency_table`.  Bodies of 4 KiB and more are packed by `compression` (None: never).  `auto_batch` gathers single
    sends.  `namespace` stands before topic and group at the brokers.  `ssl_context` makes every connection TLS,
    `use_tls` the same with the system's authorities; `wss://` name servers need neither.  `trace` tells of each
    acknowledged message in a trace topic: True in RocketMQ's own, else in the one it names.
    """

    def __init__(
        self,
        *,
        name_servers: str | Sequence[str] | None = None,
        group: str = DEFAULT_GROUP,
        timeout_seconds: float = 3.0,
        try_timeout_seconds: float | None = None,
        retry_times: int = 2,
        retry_when_not_stored: bool = False,
        send_latency_fault_enable: bool = False,
        latency_table: Sequence[tuple[float, float]] = LATENCY_TABLE,
        compression: Compression | None = DEFAULT_COMPRESSION,
        auto_batch: AutoBatch | None = None,
        interceptors: Sequence[SendInterceptor] = (),
        namespace: str = "",
        body_size_max_bytes: int = BODY_SIZE_MAX_BYTES,
        default_topic_queues: int = TEMPLATE_QUEUES,
        serialize_type: SerializeType = SerializeType.JSON,
        ssl_context: TlsContext | None = None,
        use_tls: bool = False,
        trace: bool | str = False,
    ) -> None:
        check_producer_group(group)
        self.group = group
        self.client_id = new_client_id()
        self.namespace = namespace
        group_name = with_namespace(namespace, group)
        self._remoting = RemotingClient(
            serialize_type=serialize_type,
            on_close=self._on_connection_lost,
            ssl_context=ssl_context,
            use_tls=use_tls,
            lasting=True,
        )
        self._presence = ProducerPresence(self._remoting, group_name, self.client_id)
        self._routes = RouteCache(self._remoting, name_server_list(name_servers), on_learned=self._presence.learned)
        self._requests = Requests(self._remoting, self._routes, self._presence, self.client_id)
        self._make_maker = partial(
            OutgoingMaker, namespace=namespace, body_size_max_bytes=body_size_max_bytes, compression=compression
        )
        self._maker = self._make_maker()
        topic = trace_topic_of(trace)
        self._traces = TraceSender(self._remoting, self._routes, topic, group, "PRODUCE") if topic else None
        if self._traces is not None:
            interceptors = [*interceptors, SendTracer(self._traces, namespace)]
        self._sender = Sender(
            self._remoting,
            self._routes,
            SendSettings(
                group_name, timeout_seconds, try_timeout_seconds, retry_times, retry_when_not_stored,
                default_topic_queues, serialize_type is SerializeType.JSON,
            ),
            QueueTurns(LatencyFaults(latency_table) if send_latency_fault_enable else None),
            interceptors,
        )  # fmt: skip
        self._serialize_type = serialize_type
        self._has_plain_sends = not (
            interceptors or auto_batch or retry_when_not_stored or send_latency_fault_enable or ssl_context or use_tls
        )
        self._timeout_seconds = timeout_seconds
        self._auto_batch = auto_batch
        self._batcher: AutoBatcher | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._open = False

    async def __aenter__(self) -> Producer:
        await self._remoting.__aenter__()
        self._task_group = ConnectionGroup()
        tasks = self._tasks = await self._task_group.__aenter__()
        tasks.start_soon(self._routes.run_refresh)
        tasks.start_soon(self._presence.run, self._routes)
        if self._traces is not None:
            tasks.start_soon(self._traces.run)
        if self._auto_batch is not None:
            self._batcher = AutoBatcher(self._auto_batch, self._maker, tasks, self._send_gathered)
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        self._requests.close()
        try:
            await self._task_group.__aexit__(kind, error, traceback)
        finally:
            try:
                if self._traces is not None:
                    await self._traces.flush()
                with anyio.move_on_after(GOODBYE_SECONDS, shield=True):
                    await self._presence.say_goodbye()
            finally:
                await self._remoting.__aexit__(kind, error, traceback)

    # -- sending ------------------------------------------------------------------------------------------------

    async def send(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: QueueSelector | None = None,
        argument: object = None,
        timeout_seconds: float | None = None,
    ) -> SendResult:
        """Send and wait for the broker's acknowledgement.

        `queue` says to which queue; `selector(queues, message, argument)` chooses it among those that can be written; a
        message with a sharding key goes to the queue that its hash chooses.  In these three cases there is one try.
        SendError says what each try met; ClientError when the message or the topic cannot be used.  Cancelled, or
        after a SendError by time-out, the message may or may not be stored.
        """
        if not self._open:
            self._check_open()
        if queue is None and (selector is not None or message.sharding_key is not None):
            queue = await self.select_queue(message, selector or select_by_hash, argument)
        batcher = self._batcher
        if batcher is not None and timeout_seconds is None and (added := batcher.add(message, queue)) is not None:
            gathering, number = added
            await gathering.done.wait()
            return gathering.result(number)
        outgoing = self._maker.make(message)
        return await self._sender.send(outgoing, message, queue=queue, timeout_seconds=timeout_seconds)

    def thread_sender(self) -> ThreadSender | None:
        """What makes first tries in other threads; who asks closes it.  None where sends are to be more than plain."""
        if not self._has_plain_sends:
            return None
        return ThreadSender(
            self._sender, self._routes, self._make_maker, namespace=self.namespace, serialize_type=self._serialize_type
        )

    async def send_on(
        self, tried: Tried, message: Message, *, queue: MessageQueue | None, timeout_seconds: float | None
    ) -> SendResult:
        """Go on with a `send` of the same arguments after its first try, by `thread_sender`, has failed."""
        self._check_open()
        return await self._sender.send(
            tried.outgoing, message, queue=queue, timeout_seconds=timeout_seconds, tried=tried
        )

    async def send_many(
        self,
        messages: Sequence[Message],
        *,
        queue: MessageQueue | None = None,
        selector: QueueSelector | None = None,
        argument: object = None,
        timeout_seconds: float | None = None,
        at_once: int = SENDS_AT_ONCE,
    ) -> list[SendResult | ClientError]:
        """Send each message as `send` would, and return when each has ended.

        In the messages' order what each came to: its result, or the error that `send` would have raised.  At most
        `at_once` are under way at a time, without those that auto-batching gathers, of which none costs a task: with
        it this is the quickest way for many small messages.  They may be stored in any order; `send_batch` keeps it.
        Cancelled, messages may have been stored.
        """
        self._check_open()
        if at_once < 1:
            raise ClientError(f"at_once is {at_once}: let at least one message be under way")

        async def send(message: Message) -> SendResult:
            return await self.send(
                message, queue=queue, selector=selector, argument=argument, timeout_seconds=timeout_seconds
            )

        async def choose(message: Message) -> MessageQueue:
            return await self.select_queue(message, selector or select_by_hash, argument)

        outcomes: dict[int, SendResult | ClientError] = {}
        if self._batcher is None or timeout_seconds is not None:
            await send_singly(enumerate(messages), send, min(at_once, len(messages)), outcomes)
        else:
            gathered = GatheredSends(self._batcher, outcomes)
            others = await gathered.add(messages, queue, choose, chooses=selector is not None)
            if others:
                await send_singly(others, send, min(at_once, len(others)), outcomes)
            await gathered.wait()
        return [outcomes[number] for number in range(len(messages))]

    async def send_oneway(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: QueueSelector | None = None,
        argument: object = None,
    ) -> None:
        """Send without waiting for an answer: nothing tells whether it arrives.

        Errors before that as for `send`; RemotingError when the broker cannot be reached.
        """
        self._check_open()
        if queue is None and (selector is not None or message.sharding_key is not None):
            queue = await self.select_queue(message, selector or select_by_hash, argument)
        await self._sender.send_oneway(self._maker.make(message), message, queue=queue)

    async def send_batch(
        self, messages: Sequence[Message], *, queue: MessageQueue | None = None, timeout_seconds: float | None = None
    ) -> SendResult:
        """Send messages of one topic as one request: all are stored, in order, in one queue, or none.

        The result has the ids of all (`message_ids`) and the first one's offset.  ClientError for an empty or mixed
        batch, or one over the body limit, which `split_batch` divides; else as for `send`.
        """
        self._check_open()
        outgoing = make_batch(self._maker, messages)
        return await self._sender.send(outgoing, messages, queue=queue, timeout_seconds=timeout_seconds)

    async def request(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: QueueSelector | None = None,
        argument: object = None,
        timeout_seconds: float | None = None,
    ) -> ReceivedMessage:
        """Send and wait for the reply that a consumer of the message makes (`reply_to`); the reply.

        Queues are chosen as by `send`.  `timeout_seconds` (the producer's, if not given) is for everything together and
        is told to the consumer.  SendError when the message could not be sent, RequestTimeoutError when it was and no
        reply came in time, ClientError also when the producer closes meanwhile.  A reply that comes after that, or
        after a cancellation, is dropped; the message stays sent.
        """
        self._check_open()
        if isinstance(message, ReplyMessage):
            raise ClientError("a reply cannot ask for a reply: send it")
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = anyio.current_time() + seconds
        with self._requests.waiting(seconds) as request:
            outgoing = self._maker.make(message, properties=self._maker.own_properties(request.own_properties))
            with anyio.CancelScope(deadline=deadline) as finding:
                await self._requests.introduce(outgoing.topic, seconds)
                if queue is None and (selector is not None or message.sharding_key is not None):
                    queue = await self.select_queue(message, selector or select_by_hash, argument)
            if finding.cancelled_caught:
                raise SendError(f"the request to {message.topic} was not sent: no queue was found within {seconds:g} s")
            try:
                left = deadline - anyio.current_time()
                sent = await self._sender.send(outgoing, message, queue=queue, timeout_seconds=left)
            except SendError:
                if request.reply is None:  # one came: what was not acknowledged arrived all the same
                    raise
                return request.reply
            with anyio.CancelScope(deadline=deadline):
                await request.arrived.wait()
        if request.reply is not None:
            return request.reply
        if not self._open:
            raise ClientError(f"the producer closed before a reply to the request {sent.message_id} came")
        raise RequestTimeoutError(
            f"no reply to the request {sent.message_id}, stored at {sent.queue}, within {seconds:g} s: is a consumer "
            f"of {message.topic} connected that sends reply_to(request, ...), and is the time enough for it?"
        )

    async def recall(self, topic: str, recall_handle: str, *, timeout_seconds: float = 3.0) -> str:
        """Take back a message that waits for its time; its id.  From then on it is not delivered.

        ResponseError 604 when the time has come, or the handle is none of this topic; RemotingError without an answer.
        """
        self._check_open()
        name = with_namespace(self.namespace, topic)
        address = await self._sender.master_address(name, broker_of_handle(recall_handle))
        header = RecallMessageRequestHeader(
            producer_group=with_namespace(self.namespace, self.group), topic=name, recall_handle=recall_handle
        )
        command = Command(RequestCode.RECALL_MESSAGE, header=header)
        answer = await self._remoting.request(address, command, timeout_seconds)
        if answer.code != ResponseCode.SUCCESS:
            raise ResponseError(answer.code, answer.remark, address=address)
        return answer.decode_header(RecallMessageResponseHeader).msg_id

    # -- queues -------------------------------------------------------------------------------------------------

    async def select_queue(self, message: Message, selector: QueueSelector, argument: object = None) -> MessageQueue:
        """The queue that `selector` chooses; the argument is the message's sharding key unless one is given."""
        self._check_open()
        topic = with_namespace(self.namespace, message.topic)
        queues = await self._sender.queues(topic)
        if argument is None:
            argument = message.sharding_key
        if topic != message.topic:
            queues = [self._bare(queue, message.topic) for queue in queues]
        chosen = selector(queues, message, argument)
        if not isinstance(chosen, MessageQueue):
            raise ClientError(f"the queue selector returned {chosen!r}: return one of the queues it was given")
        return chosen

    async def queues(self, topic: str) -> list[MessageQueue]:
        """The queues of a topic that can be written; RouteNotFoundError when nobody knows it."""
        self._check_open()
        known = (await self._routes.route(with_namespace(self.namespace, topic))).write_queues
        return [self._bare(queue, topic) for queue in known]

    async def refresh_route(self, topic: str) -> None:
        """Ask the name servers for the topic's place now; while none answers, what is known stays good."""
        self._check_open()
        await self._routes.refresh(with_namespace(self.namespace, topic))

    @staticmethod
    def _bare(queue: MessageQueue, topic: str) -> MessageQueue:
        return MessageQueue(topic=topic, broker_name=queue.broker_name, queue_id=queue.queue_id)

    async def _send_gathered(
        self, outgoing: Outgoing, messages: list[Message], queue: MessageQueue | None
    ) -> SendResult:
        return await self._sender.send(outgoing, messages, queue=queue)

    def _on_connection_lost(self, connection: Connection) -> None:
        if self._open:
            self._presence.lost(connection)

    def _check_open(self) -> None:
        if not self._open:
            raise ClientError("the producer is not open: use it inside `async with`")
