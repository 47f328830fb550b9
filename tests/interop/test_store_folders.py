"""One store folder goes from our broker to Apache's and back, or the other way round; each stops in order or is killed.

Whoever opens the folder serves every acknowledged message by queue offset, by key and by id, knows the topics and the
group's progress, and goes on appending where the other one ended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.broker.running import pull_header, send_header
from tests.interop.peers import Server, apache_broker, our_broker, our_name_server
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.record import decode_records

pytestmark = pytest.mark.interop

SIZES: dict[str, Any] = {
    "mappedFileSizeCommitLog": 4 * 1024 * 1024,
    "mappedFileSizeConsumeQueue": 20 * 500,
    "maxIndexNum": 1000,
    "maxHashSlotNum": 4000,
}
UNITS: dict[str, Any] = {"enableConsumeQueueExt": "true", "mappedFileSizeConsumeQueueExt": 65536}
"""Queue entries then lead to units in extension files, where pulls by tag find the tags."""
TOPICS = ("FolderA", "FolderB")
QUEUES = 3
GROUPS = 40
IN_FLIGHT = 40
GROUP = "folder_group"


class Ledger:
    """What was acknowledged: body, key and offset message id by (topic, queue id, queue offset)."""

    def __init__(self) -> None:
        self.random = random.Random(20_261_124)
        self.sent = 0
        self.acknowledged: dict[tuple[str, int, int], tuple[bytes, str, str]] = {}
        self.progress = 0

    def next_send(self) -> tuple[Command, str, str]:
        """One more send, its topic and its key."""
        self.sent += 1
        topic, queue_id = self.random.choice(TOPICS), self.random.randrange(QUEUES)
        key = f"key-{self.sent}"
        properties = f"KEYS\x01{key}\x02UNIQ_KEY\x01{self.sent:032X}\x02WAIT\x01true\x02TAGS\x01TagA"
        header = send_header(topic, queue_id=queue_id, properties=properties)
        body = self.random.randbytes(self.random.choice((0, 20, 1500, 6000))) or b"-"
        return Command(RequestCode.SEND_MESSAGE_V2, header, body=body), topic, key

    def note(self, request: Command, topic: str, key: str, answer: Command) -> None:
        """An answer to a send."""
        assert answer.code == 0, answer.remark
        fields = answer.ext_fields()
        place = topic, int(fields["queueId"]), int(fields["queueOffset"])
        assert place not in self.acknowledged, "an offset was given twice"
        self.acknowledged[place] = request.body, key, fields["msgId"]


async def send_many(address: str, ledger: Ledger, *, groups: int, kill: Callable[[], None] | None) -> None:
    """Groups of sends in flight together; with `kill`, the server goes in the middle of the last but one."""
    async with RemotingClient(serialize_type=SerializeType.ROCKETMQ) as client:
        for number in range(groups):
            sends = [ledger.next_send() for _ in range(IN_FLIGHT)]
            async with trio.open_nursery() as nursery:

                async def send(sends: list[tuple[Command, str, str]] = sends) -> None:
                    requests = [request for request, _, _ in sends]
                    answers = await client.request_many(address, requests, 30)
                    for (request, topic, key), answer in zip(sends, answers, strict=True):
                        if isinstance(answer, Command):
                            ledger.note(request, topic, key, answer)
                        else:
                            assert kill is not None, answer

                nursery.start_soon(send)
                if kill is not None and number == groups - 2:
                    await trio.sleep(0.002)
                    await trio.to_thread.run_sync(kill)
            if kill is not None and number == groups - 2:
                return


async def create_topics(address: str) -> None:
    async with RemotingClient() as client:
        for topic in TOPICS:
            header = headers.CreateTopicRequestHeader(
                topic=topic,
                default_topic="TBW102",
                read_queue_nums=QUEUES,
                write_queue_nums=QUEUES,
                perm=6,
                topic_filter_type="SINGLE_TAG",
                order=False,
            )
            answer = await client.request(address, Command(RequestCode.UPDATE_AND_CREATE_TOPIC, header), 20)
            assert answer.code == 0, answer.remark


async def verify(address: str, ledger: Ledger, tags: str = "*") -> None:
    """All that was acknowledged is served in all three ways, at its offset."""
    async with RemotingClient() as client:
        found: dict[tuple[str, int, int], bytes] = {}
        for topic in TOPICS:
            for queue_id in range(QUEUES):
                offset = 0
                while True:
                    header = pull_header(
                        topic, queue_id=queue_id, queue_offset=offset, consumer_group=GROUP, subscription=tags
                    )
                    pulled = await client.request(address, Command(RequestCode.PULL_MESSAGE, header), 20)
                    if pulled.code != 0:
                        break
                    for record in decode_records(pulled.body, check_crc=True):
                        assert record.queue_offset == offset
                        found[topic, queue_id, offset] = record.body
                        offset += 1
        for place, (body, _, _) in ledger.acknowledged.items():
            assert found.get(place) == body, f"{place} is lost or changed"
        everything = [*ledger.acknowledged.items()]
        for start in range(0, len(everything), 100):
            part = everything[start : start + 100]
            views = [
                Command(RequestCode.VIEW_MESSAGE_BY_ID, headers.ViewMessageRequestHeader(offset=int(msg_id[16:], 16)))
                for _, (_, _, msg_id) in part
            ]
            queries = [
                Command(
                    RequestCode.QUERY_MESSAGE,
                    headers.QueryMessageRequestHeader(
                        topic=place[0], key=key, max_num=32, begin_timestamp=0, end_timestamp=2**62
                    ),
                )
                for place, (_, key, _) in part
            ]
            answers = await client.request_many(address, [*views, *queries], 30)
            for (place, (body, key, _)), answer in zip([*part, *part], answers, strict=True):
                assert isinstance(answer, Command), answer
                assert answer.code == 0, f"{place} {key}: {answer.remark}"
                assert body in [record.body for record in decode_records(answer.body, check_crc=True)]
        if ledger.progress:
            query = headers.QueryConsumerOffsetRequestHeader(consumer_group=GROUP, topic=TOPICS[0], queue_id=1)
            kept = await client.request(address, Command(RequestCode.QUERY_CONSUMER_OFFSET, query), 20)
            assert kept.ext_fields().get("offset") == str(ledger.progress), kept.remark


async def commit(address: str, ledger: Ledger) -> None:
    ledger.progress += 7
    header = headers.UpdateConsumerOffsetRequestHeader(
        consumer_group=GROUP, topic=TOPICS[0], queue_id=1, commit_offset=ledger.progress
    )
    async with RemotingClient() as client:
        answer = await client.request(address, Command(RequestCode.UPDATE_CONSUMER_OFFSET, header), 20)
        assert answer.code == 0, answer.remark


@contextmanager
def made_by(make: str, scratch: Path, namesrv: str, store: Path, **settings: Any) -> Iterator[Server]:
    if make == "ours":
        with our_broker(scratch, namesrv, store=store, **SIZES, **settings) as server:
            yield server
    else:
        with apache_broker(scratch, namesrv, store=store, **SIZES, **settings) as server:
            yield server


@pytest.mark.parametrize("end", ["stopped", "killed"])
@pytest.mark.parametrize("first", ["ours", "Apache's"])
def test_a_folder_goes_back_and_forth(first: str, end: str, tmp_path: Path) -> None:
    second = "Apache's" if first == "ours" else "ours"
    store = tmp_path / "store"
    ledger = Ledger()
    with our_name_server(tmp_path) as names:
        for number, make in enumerate((first, second, first)):
            with made_by(make, tmp_path / str(number), names.address, store) as server:
                if number == 0:
                    trio.run(create_topics, server.address)
                trio.run(verify, server.address, ledger)
                kill = server.kill if end == "killed" else None
                trio.run(partial(send_many, server.address, ledger, groups=GROUPS, kill=kill))
                if kill is None:
                    trio.run(commit, server.address, ledger)
        with made_by(second, tmp_path / "last", names.address, store) as server:
            trio.run(verify, server.address, ledger)
    assert len(ledger.acknowledged) > 3 * (GROUPS - 2) * IN_FLIGHT


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_extension_files_go_back_and_forth(end: str, tmp_path: Path) -> None:
    """Each broker filters by tags through the other's units, and adds its own behind them."""
    store = tmp_path / "store"
    ledger = Ledger()
    with our_name_server(tmp_path) as names:
        for number, make in enumerate(("ours", "Apache's", "ours", "Apache's")):
            with made_by(make, tmp_path / str(number), names.address, store, **UNITS) as server:
                if number == 0:
                    trio.run(create_topics, server.address)
                trio.run(verify, server.address, ledger, "TagA")
                trio.run(none_of, server.address, "TagB")
                kill = server.kill if end == "killed" else None
                trio.run(partial(send_many, server.address, ledger, groups=GROUPS, kill=kill))
        with made_by("ours", tmp_path / "last", names.address, store, **UNITS) as server:
            trio.run(verify, server.address, ledger, "TagA")
            trio.run(none_of, server.address, "TagB")
    units = store / "consumequeue_ext" / TOPICS[0] / "0"
    assert len(list(units.iterdir())) >= 1
    assert len(ledger.acknowledged) > 4 * (GROUPS - 2) * IN_FLIGHT


async def none_of(address: str, tags: str) -> None:
    """No message is served to who wants other tags than all have."""
    async with RemotingClient() as client:
        for queue_id in range(QUEUES):
            header = pull_header(TOPICS[0], queue_id=queue_id, queue_offset=0, consumer_group=GROUP, subscription=tags)
            pulled = await client.request(address, Command(RequestCode.PULL_MESSAGE, header), 20)
            assert not pulled.body
