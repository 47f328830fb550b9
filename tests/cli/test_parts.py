"""Cutting a stream at separators, whatever the pieces it comes in."""

from __future__ import annotations

import os

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.cli.parts import Splitter, read_parts, separator_bytes
from trio_rmq.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\n\n", b"\n\n"),
        (r"a\tb\0", b"a\tb\0"),
        (r"\\n", b"\\n"),
        (r"\x00\xff", b"\x00\xff"),
        ("é", "é".encode()),
        ("", b""),
    ],
)
def test_separators_as_typed(text: str, expected: bytes) -> None:
    assert separator_bytes(text) == expected


@pytest.mark.parametrize("text", [r"\q", r"\x1", "a\\"])
def test_separators_that_mean_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="is none of"):
        separator_bytes(text)


@given(st.lists(st.binary(max_size=5)), st.sampled_from([b"\n", b"\n\n", b"ab", b""]))
def test_parts_do_not_depend_on_the_pieces(pieces: list[bytes], separator: bytes) -> None:
    whole = b"".join(pieces)
    splitter = Splitter(separator)
    parts = [part for piece in pieces for part in splitter.feed(piece)] + splitter.end()
    if separator:
        assert parts == (whole.split(separator) if not whole.endswith(separator) else whole.split(separator)[:-1]) or (
            not whole and not parts
        )
    else:
        assert parts == ([whole] if whole else [])


def test_parts_of_a_pipe_come_as_they_are_written() -> None:
    reader, writer = os.pipe()
    read: list[int] = []

    async def main() -> None:
        os.write(writer, b"one\ntwo\nthr")
        parts = read_parts(reader, b"\n", on_read=read.append)
        assert await anext(parts) == [b"one", b"two"]
        os.write(writer, b"ee")
        os.close(writer)
        assert await anext(parts) == [b"three"]
        assert [more async for more in parts] == []

    trio.run(main)
    os.close(reader)
    assert sum(read) == 13
