"""Power loss on real files: as of the twin in memory, what was synced stays and what was not may go."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_rmq.store.disk import Disk
from trio_rmq.testing.chaos.chaos_disk import ChaosDisk
from trio_rmq.testing.chaos.orders import Action, Orders, Rule, Told, read_deeds, write_orders
from trio_rmq.testing.chaos.unsynced import Journal, lose_power
from trio_rmq.testing.faulty_disk import FaultyDisk

NOTHING_SURVIVES, ALL_SURVIVES = 2, 5
"""Seeds of `random.Random` whose first choice among five chances is 0.0, and 1.0."""


class Node:
    """A store folder, and the disk of the process that has it."""

    def __init__(self, base: str, *rules: Rule) -> None:
        self.root, self.journal, self.orders = f"{base}/store", f"{base}/journal", f"{base}/orders.json"
        Path(self.root).mkdir()
        write_orders(self.orders, Orders(list(rules)))
        self.restart()

    def restart(self) -> None:
        """The next process, which finds what the last one wrote."""
        self.disk = ChaosDisk(Told(self.orders), Journal(self.journal))

    def lose_power(self, seed: int) -> dict[str, bytes]:
        """The files that are left."""
        lose_power(self.root, self.journal, Random(seed))
        return {path.name: path.read_bytes() for path in Path(self.root).iterdir()}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(str(tmp_path))


names = st.sampled_from(["a", "b", "c"])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), names, st.integers(0, 1500), st.binary(min_size=1, max_size=700)),
        st.tuples(st.just("truncate"), names, st.integers(0, 2000)),
        st.tuples(st.just("sync"), names),
        st.tuples(st.just("sync folder")),
        st.tuples(st.just("rename"), names, names),
        st.tuples(st.just("unlink"), names),
        st.tuples(st.just("restart")),
    ),
    max_size=25,
)


def carry_out(disk: Disk, root: str, operation: tuple[object, ...]) -> None:
    """One operation; on a file that is not there, none."""
    match operation:
        case ("write", str(name), int(offset), bytes(data)):
            handle = disk.open(f"{root}/{name}", create=True)
            disk.pwrite(handle, data, offset)
            disk.close(handle)
        case ("truncate", str(name), int(size)) if disk.exists(f"{root}/{name}"):
            handle = disk.open(f"{root}/{name}")
            disk.truncate(handle, size)
            disk.close(handle)
        case ("sync", str(name)) if disk.exists(f"{root}/{name}"):
            handle = disk.open(f"{root}/{name}")
            disk.fdatasync(handle)
            disk.close(handle)
        case ("sync folder",):
            disk.sync_directory(root)
        case ("rename", str(source), str(target)) if source != target and disk.exists(f"{root}/{source}"):
            disk.rename(f"{root}/{source}", f"{root}/{target}")
        case ("unlink", str(name)) if disk.exists(f"{root}/{name}"):
            disk.unlink(f"{root}/{name}")


@settings(max_examples=150, deadline=None)
@given(operations=operations, seed=st.sampled_from([NOTHING_SURVIVES, ALL_SURVIVES]))
def test_nothing_or_all_survives_as_on_the_twin(operations: list[tuple[object, ...]], seed: int) -> None:
    twin = FaultyDisk()
    twin.sync_directory("")
    twin.make_directories("store")
    twin.sync_directory("")
    with TemporaryDirectory() as base:
        node = Node(base)
        for operation in operations:
            if operation == ("restart",):
                node.restart()
                twin = twin.survivor_of_kill()
                continue
            carry_out(node.disk, node.root, operation)
            carry_out(twin, "store", operation)
        survivor = twin.survivor_of_power_loss(Random(seed))
        expected = {name: survivor.read_file(f"store/{name}") for name in survivor.list_directory("store")}
        assert node.lose_power(seed) == expected


@settings(max_examples=100, deadline=None)
@given(writes=st.lists(st.binary(min_size=1, max_size=900), min_size=2, max_size=8), seed=st.integers(0, 10_000))
def test_synced_bytes_stay_and_others_are_theirs_or_zero(writes: list[bytes], seed: int) -> None:
    with TemporaryDirectory() as base:
        node = Node(base)
        handle = node.disk.open(f"{node.root}/log", create=True)
        node.disk.sync_directory(node.root)
        written, synced = b"", 0
        for number, data in enumerate(writes):
            node.disk.pwrite(handle, data, len(written))
            written += data
            if number == len(writes) // 2:
                node.disk.fdatasync(handle)
                synced = len(written)
        left = node.lose_power(seed)["log"]
        assert left[:synced] == written[:synced]
        assert all(byte in (0, true) for byte, true in zip(left, written, strict=False))


def rule(action: Action, *calls: str, **fields: object) -> Rule:
    return Rule(1, calls, action, **fields)  # type: ignore[arg-type]  # fields of Rule


def test_what_a_failed_sync_should_have_covered_is_lost_though_the_next_one_succeeds(tmp_path: Path) -> None:
    node = Node(str(tmp_path), rule("error", "fdatasync", times=1))
    handle = node.disk.open(f"{node.root}/log", create=True)
    node.disk.sync_directory(node.root)
    node.disk.pwrite(handle, b"lost", 0)
    with pytest.raises(OSError, match="Input/output error") as failed:
        node.disk.fdatasync(handle)
    assert failed.value.errno == errno.EIO
    node.disk.pwrite(handle, b"kept", 4)
    node.disk.fdatasync(handle)
    assert node.disk.pread(handle, 8, 0) == b"lostkept"
    assert node.lose_power(NOTHING_SURVIVES) == {"log": b"\0\0\0\0kept"}


def test_rules_begin_end_and_are_told(tmp_path: Path) -> None:
    node = Node(str(tmp_path), rule("error", "pwrite", path="log", error="ENOSPC", first=2, times=1))
    handle, other = (node.disk.open(f"{node.root}/{name}", create=True) for name in ("log", "other"))
    node.disk.pwrite(handle, b"1", 0)
    node.disk.pwrite(other, b"1", 0)
    with pytest.raises(OSError, match="No space left"):
        node.disk.pwrite(handle, b"2", 1)
    node.disk.pwrite(handle, b"3", 1)
    assert [(deed.action, deed.call, Path(deed.path).name) for deed in read_deeds(node.orders)] == [
        ("error", "pwrite", "log")
    ]


def test_a_fault_that_strikes_once_does_so_over_all_lives(tmp_path: Path) -> None:
    node = Node(str(tmp_path), rule("error", "pwrite", times=1))
    handle = node.disk.open(f"{node.root}/log", create=True)
    with pytest.raises(OSError, match="Input/output error"):
        node.disk.pwrite(handle, b"1", 0)
    node.restart()
    handle = node.disk.open(f"{node.root}/log")
    assert node.disk.pwrite(handle, b"1", 0) == 1


def test_a_short_write_writes_a_part_and_a_lying_sync_none_of_it(node: Node) -> None:
    handle = node.disk.open(f"{node.root}/log", create=True)
    node.disk.sync_directory(node.root)
    write_orders(node.orders, Orders([rule("short", "pwrite"), Rule(2, ("fdatasync",), "lie")]))
    assert node.disk.pwrite(handle, b"12345678", 0) == 4
    node.disk.fdatasync(handle)
    assert node.lose_power(NOTHING_SURVIVES) == {"log": b""}


def test_whole_files_are_written_through_the_same_calls(node: Node) -> None:
    node.disk.write_file(f"{node.root}/table", b"content")
    assert node.disk.read_file(f"{node.root}/table") == b"content"
    assert node.lose_power(NOTHING_SURVIVES) == {}
