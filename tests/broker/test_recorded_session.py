"""The broker answers the requests that Apache's client and tools sent as Apache's broker did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio.testing

from tests.broker.running import one_broker
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.frame import decode_frame
from trio_rmq.wire.properties import parse_properties
from trio_rmq.wire.record import StoredMessage, decode_records

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors"
FLAG_SUBSCRIPTION = 4
RECORDS_START = b"\xda\xa3\x20\xa7"
OTHERWISE = {
    RequestCode.GET_BROKER_CONFIG: "the keys are our own",
    RequestCode.UPDATE_BROKER_CONFIG: "most settings change only in the file (protocol/differences.md)",
    RequestCode.GET_BROKER_RUNTIME_INFO: "figures of this run",
    RequestCode.GET_ALL_TOPIC_CONFIG: "its table has topics whose making is not among the vectors",
    RequestCode.GET_CONSUMER_CONNECTION_LIST: "asked beside consumers whose heartbeats are not among the vectors",
    RequestCode.CONSUMER_SEND_MSG_BACK: "of a message that is not among the vectors",
    RequestCode.GET_MAX_OFFSET: "counts sends that are not among the vectors",
    RequestCode.END_TRANSACTION: "of a transaction that is not among the vectors",
}
OF_THIS_RUN = {"msgId", "timestamp", "indexLastUpdateTimestamp", "indexLastUpdatePhyoffset", "version", "transactionId"}
"""Header fields that hold times, addresses or physical offsets."""


def missing_before(request: Command) -> str | None:
    """Why the vectors do not hold what this request was about; None when they do."""
    if request.code in OTHERWISE:
        return OTHERWISE[RequestCode(request.code)]
    fields = request.ext_fields()
    if "TRAN_MSG\x01true" in fields.get("i", ""):
        return "transactions are not served yet"
    if request.code == RequestCode.PULL_MESSAGE and not int(fields["sysFlag"]) & FLAG_SUBSCRIPTION:
        return "the heartbeats of its group are not among the vectors"
    if fields.get("queueId") == "1":
        return "the sends to this queue are not among the vectors"
    return None


def read(directory: Path, name: object) -> Command:
    return decode_frame((directory / str(name)).read_bytes())


def told(record: StoredMessage) -> tuple[object, ...]:
    """What of a record depends on the messages alone: not its times, hosts and place in the log, nor the order of
    its properties, which is a hash map's in Apache's."""
    return (
        record.topic,
        record.queue_id,
        record.queue_offset,
        record.body,
        parse_properties(record.properties),
        record.flag,
    )


def same(answer: Command, expected: Command) -> None:
    """Compare all that does not depend on the run."""
    assert answer.code == expected.code, answer.remark
    fields, wanted = answer.ext_fields(), expected.ext_fields()
    assert fields.keys() == wanted.keys()
    for name in fields.keys() - OF_THIS_RUN:
        assert fields[name] == wanted[name], name
    if expected.body[4:8] == RECORDS_START:
        ours = [told(record) for record in decode_records(answer.body)]
        theirs = [told(record) for record in decode_records(expected.body)]
        assert ours == theirs[: len(ours)]
        assert ours
    else:
        assert answer.body == expected.body
    if expected.remark is None:
        assert answer.remark is None


@pytest.mark.trio
@pytest.mark.parametrize("encoding", ["wire-json", "wire-rocketmq"])
async def test_recorded_requests_get_the_recorded_answers(
    encoding: str, autojump_clock: trio.testing.MockClock
) -> None:
    directory = VECTORS / encoding
    compared = []
    async with one_broker(broker_name="broker-a") as (_, client):
        for entry in json.loads((directory / "index.json").read_text()):
            if entry["to"] != "broker":
                continue
            request = read(directory, entry["request"])
            if request.is_oneway:
                await client.remoting.request_oneway(client.address, request)
            elif entry.get("response"):  # not a pull that was still held when its client ended
                answer = await client.remoting.request(client.address, request, 100)
                if missing_before(request) is None:
                    same(answer, read(directory, entry["response"]))
                    compared.append(request.code)
    assert len(compared) > 30
    assert len(set(compared)) > 15
