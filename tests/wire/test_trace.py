"""Trace records: Apache's bytes, and whatever can be written is read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.trace import (
    ConsumeEndTrace,
    ConsumeReturnType,
    ConsumeStartTrace,
    EndTransactionTrace,
    RecallTrace,
    SendTrace,
    Trace,
    TracedMessageType,
    decode_traces,
    encode_trace,
    encode_traces,
    trace_keys,
)

VECTORS = json.loads((Path(__file__).parents[2] / "protocol/vectors/traces/traces.json").read_text())
TYPES: dict[str, type[Trace]] = {
    "Pub": SendTrace,
    "SubBefore": ConsumeStartTrace,
    "SubAfter": ConsumeEndTrace,
    "EndTransaction": EndTransactionTrace,
    "Recall": RecallTrace,
}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_apaches_bytes(vector: dict[str, Any]) -> None:
    traces = [
        msgspec.convert({key: value for key, value in record.items() if key != "type"}, TYPES[record["type"]])
        for record in vector["records"]
    ]
    body = bytes.fromhex(vector["body"])
    assert decode_traces(body) == traces
    assert encode_traces(traces) == body
    assert sorted({key for trace in traces for key in trace_keys(trace)}) == vector["keys"]


texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x01\x02"), max_size=20)
maybes = st.none() | texts.filter(lambda text: text not in ("", "null"))
numbers = st.integers(-(2**63), 2**63 - 1)
kinds = st.sampled_from(TracedMessageType)
traces = st.one_of(
    st.builds(
        SendTrace, time_ms=numbers, region_id=maybes, group=texts, topic=texts, message_id=texts, tags=maybes,
        keys=maybes, store_host=texts, body_size_bytes=numbers, cost_ms=numbers, message_type=kinds,
        offset_message_id=texts, success=st.booleans(),
    ),
    st.builds(
        ConsumeStartTrace, time_ms=numbers, region_id=maybes, group=texts, request_id=texts, message_id=texts,
        retry_times=numbers, keys=maybes,
    ),
    st.builds(
        ConsumeEndTrace, request_id=texts, message_id=texts, cost_ms=numbers, success=st.booleans(), keys=maybes,
        return_type=st.sampled_from(ConsumeReturnType).map(int), time_ms=numbers,
        group=texts.filter(bool),
    ),
    st.builds(
        ConsumeEndTrace, request_id=texts, message_id=texts, cost_ms=numbers, success=st.booleans(), keys=maybes,
        return_type=st.sampled_from(ConsumeReturnType).map(int),
    ),
    st.builds(
        EndTransactionTrace, time_ms=numbers, region_id=maybes, group=texts, topic=texts, message_id=texts, tags=maybes,
        keys=maybes, store_host=texts, message_type=kinds, transaction_id=maybes, state=texts, from_check=st.booleans(),
    ),
    st.builds(
        RecallTrace, time_ms=numbers, region_id=maybes, group=texts, topic=texts, message_id=texts,
        success=st.booleans(),
    ),
)  # fmt: skip


@given(st.lists(traces, max_size=5))
def test_what_is_written_is_read_again(some: list[Trace]) -> None:
    body = encode_traces(some)
    assert decode_traces(body) == some
    assert decode_traces(body.decode()) == some


names = st.sampled_from(list(TYPES)).map(str.encode)
rests = st.lists(st.sampled_from([b"\x01", b"\x02", b"1", b"true", b"null", b"x"]), max_size=40).map(b"".join)


@given(st.binary(max_size=60) | st.tuples(names, rests).map(b"".join))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        some = decode_traces(body)
    except ProtocolError:
        return
    assert decode_traces(encode_traces(some)) == some or any(_has_empty(trace) for trace in some)


def _has_empty(trace: Trace) -> bool:
    """An empty text where there may be none is written as none."""
    return any(value == "" for value in msgspec.structs.asdict(trace).values())


def test_what_older_and_cloud_clients_wrote_is_read() -> None:
    sent = "Pub\x011\x01R\x01G\x01T\x01M\x01null\x01K\x01H\x015\x016\x010\x01true\x02"
    [trace] = decode_traces(sent)
    assert isinstance(trace, SendTrace)
    assert (trace.offset_message_id, trace.success) == ("", True)
    [trace] = decode_traces(sent.replace("0\x01true\x02", "0\x01O\x01false\x0110.0.0.1\x02"))
    assert isinstance(trace, SendTrace)
    assert (trace.offset_message_id, trace.success) == ("O", False)
    for end in ("\x020\x01true\x01K\x02", "\x020\x01true\x01K\x014\x02", "\x020\x01true\x01K\x014\x01\x02"):
        [trace] = decode_traces("SubAfter\x01R\x01M\x010\x01true\x01K" + end.partition("K")[2])
        assert isinstance(trace, ConsumeEndTrace)
        assert (trace.keys, trace.time_ms, trace.group) == ("K", None, None)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"Pup\x011\x02", "'Pup' is no type"),
        (b"Pub\x011\x02", "with 1 fields"),
        (b"Recall\x01x\x01R\x01G\x01T\x01M\x01true\x02", "'x' is no number"),
        (b"Recall\x011\x01R\x01G\x01T\x01M\x01yes\x02", "'yes' is neither true nor false"),
        (b"Pub\x011\x01R\x01G\x01T\x01M\x01\x01\x01H\x015\x016\x019\x01O\x01true\x02", "9 is not a valid"),
        (b"Pub\xff\x02", "no UTF-8"),
        (b"Recall\x01" + b"1" * 50 + b"\x01R\x01G\x01T\x01M\x01true\x02", "is no number"),
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        decode_traces(body)


@pytest.mark.parametrize("group", ["a\x01b", "a\x02b"])
def test_a_separator_in_a_text_is_refused(group: str) -> None:
    with pytest.raises(ProtocolError, match="separator"):
        encode_trace(RecallTrace(time_ms=1, region_id=None, group=group, topic="T", message_id="M", success=True))
