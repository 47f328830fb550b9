"""The config files that Apache 4.9.7 wrote: decoded, and encoded again to the same bytes."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from trio_rmq.wire import groups, topics

ARCHIVE = Path(__file__).parents[2] / "protocol" / "vectors" / "store" / "store.tar.gz"
T = TypeVar("T")


def again(decode: Callable[[bytes], T], encode: Callable[[T], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: encode(decode(data))


FILES: dict[str, Callable[[bytes], bytes]] = {
    "topics.json": again(topics.decode_topic_table, partial(topics.encode_topic_table, pretty=True)),
    "subscriptionGroup.json": again(groups.decode_group_table, partial(groups.encode_group_table, pretty=True)),
    "consumerOffset.json": again(groups.decode_consumer_offsets, partial(groups.encode_consumer_offsets, pretty=True)),
    "delayOffset.json": again(groups.decode_delay_offsets, partial(groups.encode_delay_offsets, pretty=True)),
}


@pytest.mark.parametrize("folder", ["store", "unclean"])
@pytest.mark.parametrize("name", FILES)
def test_the_same_bytes_again(folder: str, name: str) -> None:
    with tarfile.open(ARCHIVE) as archive:
        names = [f"{folder}/config/{name}", f"{folder}/config/{name}.bak"]
        found = [archive.extractfile(path) for path in names if path in archive.getnames()]
        assert found
        for file in found:
            assert file is not None
            data = file.read()
            assert FILES[name](data) == data
