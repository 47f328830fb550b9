"""The checksum is zlib's, whichever library computes it."""

from __future__ import annotations

import importlib
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.wire import checksum


@given(st.binary(max_size=5_000), st.integers(0, 2**32 - 1))
def test_the_numbers_are_zlibs(data: bytes, start: int) -> None:
    assert checksum.crc32(data) == zlib.crc32(data)
    assert checksum.crc32(memoryview(data), start) == zlib.crc32(data, start)


def test_without_the_library_zlib_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    try:
        assert importlib.reload(checksum).crc32 is zlib.crc32
    finally:
        monkeypatch.undo()
        importlib.reload(checksum)
