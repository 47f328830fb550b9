"""Queries by key and by unique key, and views by offset: codes, limits, order and what the header says."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests.broker.running import Client, one_broker
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.record import decode_record, decode_records

pytestmark = pytest.mark.trio


async def query(
    client: Client,
    key: str,
    *,
    topic: str = "T",
    count: int = 64,
    begin: int = 0,
    end: int = 2**63 - 1,
    unique: str = "",
) -> Command:
    """Ask for a key; `unique` is the value of `_UNIQUE_KEY_QUERY`."""
    header = headers.QueryMessageRequestHeader(
        topic=topic, key=key, max_num=count, begin_timestamp=begin, end_timestamp=end
    )
    command = Command(RequestCode.QUERY_MESSAGE, header, {"_UNIQUE_KEY_QUERY": unique} if unique else None)
    return await client.remoting.request(client.address, command, 100.0)


def bodies(answer: Command) -> list[bytes]:
    assert answer.code == ResponseCode.SUCCESS, answer.remark
    return [message.body for message in decode_records(answer.body, check_crc=True)]


async def test_keys_and_unique_keys_are_found_at_once(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        for n in range(3):
            answer = await client.send(b"%d" % n, properties=f"UNIQ_KEY\x01U{n}\x02KEYS\x01all k{n}")
            assert answer.code == ResponseCode.SUCCESS
        assert bodies(await query(client, "U1")) == [b"1"]
        assert bodies(await query(client, "k2")) == [b"2"]
        found = await query(client, "all")
        assert bodies(found) == [b"0", b"1", b"2"]
        last = decode_records(found.body)[-1]
        assert found.decode_header(headers.QueryMessageResponseHeader) == headers.QueryMessageResponseHeader(
            index_last_update_timestamp=last.store_timestamp_ms, index_last_update_phyoffset=last.physical_offset
        )
        assert bodies(await query(client, "all", count=2)) == [b"1", b"2"]


async def test_what_is_not_there_is_22_with_the_reach_of_the_index(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        assert (await query(client, "k")).code == ResponseCode.QUERY_NOT_FOUND
        await client.send(properties="UNIQ_KEY\x01U")
        time_ms = (await client.stored())[0].store_timestamp_ms
        for answer in (
            await query(client, "V"),
            await query(client, "U", topic="Other"),
            await query(client, "U", begin=time_ms + 1),
            await query(client, "U", end=time_ms - 1),
            await query(client, "U", begin=5, end=4),
            await query(client, "U", count=0),
            await query(client, "U", count=-1),
            await query(client, ""),
            await query(client, "U" * 40_000),
        ):
            assert answer.code == ResponseCode.QUERY_NOT_FOUND
            assert answer.remark == "can not find message, maybe time range not correct"
            assert int(answer.ext_fields()["indexLastUpdateTimestamp"]) == time_ms
        assert (await query(client, "U", begin=time_ms, end=time_ms)).code == ResponseCode.SUCCESS


async def test_64_at_most_and_32_by_unique_key(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        for n in range(70):
            await client.send(b"%d" % n, properties="UNIQ_KEY\x01same")
        assert bodies(await query(client, "same", count=1000)) == [b"%d" % n for n in range(6, 70)]
        for count in (1, 1000):
            found = bodies(await query(client, "same", count=count, unique="true"))
            assert found == [b"%d" % n for n in range(38, 70)]
        assert len(bodies(await query(client, "same", count=1, unique="false"))) == 1


async def test_an_incomplete_query_is_refused(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        answer = await client.remoting.request(
            client.address, Command(RequestCode.QUERY_MESSAGE, ext={"topic": "T", "key": "k", "maxNum": "many"}), 100.0
        )
        assert answer.code not in (ResponseCode.SUCCESS, ResponseCode.QUERY_NOT_FOUND)


async def test_without_an_index_nothing_is_found(autojump_clock: MockClock) -> None:
    async with one_broker(store={"message_index_enable": False}) as (_, client):
        await client.send(properties="UNIQ_KEY\x01U")
        assert (await query(client, "U")).code == ResponseCode.QUERY_NOT_FOUND


async def test_a_message_is_viewed_by_its_offset(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.send(b"zero")
        await client.send(b"one")
        second = (await client.stored())[1]
        for offset, code in ((second.physical_offset, 0), (second.physical_offset + 1, 1), (-1, 1), (2**60, 1)):
            answer = await client.ask(RequestCode.VIEW_MESSAGE_BY_ID, headers.ViewMessageRequestHeader(offset=offset))
            assert answer.code == code
            if not code:
                assert decode_record(answer.body).body == b"one"
