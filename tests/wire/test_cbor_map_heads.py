"""A map may have its size written in more bytes than needed: libraries do so that begin before they know it."""

from __future__ import annotations

import pytest

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.cbor_codec import decode_commands

CONTENT = bytes.fromhex("64636f6465 1869 666f7061717565 07 696578744669656c6473") + b"\xa1\x65topic\x61t"


@pytest.mark.parametrize("head", ["a3", "b803", "b90003", "ba00000003", "bb0000000000000003"])
def test_any_definite_size_of_the_command_map(head: str) -> None:
    (command,) = decode_commands(bytes.fromhex(head) + CONTENT)
    assert (command.code, command.opaque, command.ext_fields()) == (105, 7, {"topic": "t"})


@pytest.mark.parametrize("head", ["83", "b9", "b90009", "bf"])
def test_other_heads_are_refused(head: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_commands(bytes.fromhex(head) + CONTENT)
    assert caught.value.fatal
