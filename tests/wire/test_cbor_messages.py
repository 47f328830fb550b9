"""Commands that leave together, in as few messages as the bounds of a message allow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq import limits
from trio_rmq.errors import ProtocolError
from trio_rmq.wire import cbor_codec
from trio_rmq.wire.cbor_codec import decode_commands, encode_commands, encode_messages
from trio_rmq.wire.command import Command

BOUND = 1000


def of_size(size_bytes: int) -> Command:
    """A command that takes so many bytes, 350 or more."""
    empty = len(encode_commands([Command(1, body=bytes(256))]))
    command = Command(1, body=bytes(256 + size_bytes - empty))
    assert len(encode_commands([command])) == size_bytes
    return command


@contextmanager
def small_bounds() -> Iterator[None]:
    """Messages of at most BOUND bytes and 5 commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cbor_codec, "FRAME_SIZE_MAX_BYTES", BOUND)
        patch.setattr(cbor_codec, "COMMANDS_PER_MESSAGE_MAX", 5)
        yield


@pytest.mark.parametrize(
    ("sizes", "messages"),
    [
        ([400, 600], [1000]),
        ([400, 601], [400, 601]),
        ([400, 350, 700, 360], [750, 700, 360]),
        ([1000, 1000], [1000, 1000]),
        ([400, 1500, 400], [400, 1500, 400]),
        ([1500], [1500]),
    ],
)
def test_at_the_bound(sizes: list[int], messages: list[int]) -> None:
    with small_bounds():
        assert [len(message) for message in encode_messages([of_size(size) for size in sizes])] == messages


@given(st.lists(st.integers(0, 700), max_size=30))
def test_all_arrive_in_order(sizes: list[int]) -> None:
    commands = [Command(number, body=bytes(size)) for number, size in enumerate(sizes)]
    with small_bounds():
        messages = encode_messages(commands)
    assert b"".join(messages) == encode_commands(commands)
    decoded = [decode_commands(message) for message in messages]
    assert [command.code for message in decoded for command in message] == list(range(len(sizes)))
    assert all(len(message) <= 5 for message in decoded)
    for message, first, after in zip(messages, decoded, decoded[1:], strict=False):
        assert len(first) == 5 or len(message) + len(encode_commands(after[:1])) > BOUND, "none is cut too early"


def test_more_commands_than_a_message_may_have() -> None:
    commands = [Command(1)] * (limits.COMMANDS_PER_MESSAGE_MAX + 1)
    first, second = encode_messages(commands)
    assert len(decode_commands(first)) == limits.COMMANDS_PER_MESSAGE_MAX
    assert len(decode_commands(second)) == 1
    with pytest.raises(ProtocolError, match="more than"):
        decode_commands(first + second)
