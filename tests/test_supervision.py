"""Nesting as shutdown order: who ends first, whatever ends it, and that a lone error comes out bare."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import trio
import trio.testing

from tests.broker.name_servers import PORT, Notebook, name_server
from tests.broker.running import BROKER, NAME_SERVER, broker_config, broker_in
from trio_rmq.broker.members import Members
from trio_rmq.broker.server import serve_broker
from trio_rmq.errors import StoreFailedError
from trio_rmq.supervision import lone_errors, serving_while, without_readiness
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import small_config
from trio_rmq.testing.world import open_world
from trio_rmq.wire.codes import RequestCode, ResponseCode


class Diary:
    """What happened, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def service(self, *, task_status: trio.TaskStatus[str]) -> None:
        """Writes its beginning and its end, and serves between them."""
        self.lines.append("service begins")
        task_status.started("ready")
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self.lines.append("service ends")


@pytest.mark.trio
class TestServingWhile:
    async def test_the_block_gets_what_the_service_says(self) -> None:
        diary = Diary()
        async with serving_while(diary.service) as said:
            assert said == "ready"
            diary.lines.append("block")
        assert diary.lines == ["service begins", "block", "service ends"]

    async def test_cancelled_from_outside_the_block_ends_first_and_may_wait(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        diary = Diary()
        with trio.move_on_after(1):
            async with serving_while(diary.service):
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(5)
                    diary.lines.append("block ends")
        assert diary.lines == ["service begins", "block ends", "service ends"]
        assert trio.current_time() == pytest.approx(6)

    async def test_several_end_from_the_inside_out(self) -> None:
        outer, inner = Diary(), Diary()
        inner.lines = outer.lines
        with trio.CancelScope() as scope:
            async with serving_while(outer.service), serving_while(inner.service):
                outer.lines.append("block")
                scope.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    outer.lines.append("block ends")
        assert outer.lines == ["service begins"] * 2 + ["block", "block ends"] + ["service ends"] * 2

    async def test_a_block_that_fails_ends_the_service(self) -> None:
        diary = Diary()
        with pytest.raises(LookupError, match="a defect"), lone_errors():
            async with serving_while(diary.service):
                raise LookupError("a defect")
        assert diary.lines[-1] == "service ends"

    async def test_a_service_that_fails_ends_the_block(self) -> None:
        async def fail(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await trio.lowlevel.checkpoint()
            raise LookupError("a defect")

        ended = []

        async def serve_and_wait() -> None:
            async with serving_while(fail):
                try:
                    await trio.sleep_forever()
                finally:
                    ended.append(True)

        with pytest.raises(LookupError, match="a defect"), lone_errors():
            await serve_and_wait()
        assert ended

    async def test_a_service_that_cannot_start_runs_no_block(self) -> None:
        async def fail(*, task_status: trio.TaskStatus[None]) -> None:
            raise LookupError("no start")

        with pytest.raises(LookupError, match="no start"), lone_errors():
            async with serving_while(fail):
                pytest.fail("the block must not run")

    async def test_cancelled_while_the_service_starts(self, autojump_clock: trio.testing.MockClock) -> None:
        async def slow(*, task_status: trio.TaskStatus[None]) -> None:
            with trio.move_on_after(3):
                await trio.sleep_forever()
            task_status.started()
            await trio.sleep_forever()

        with trio.move_on_after(1) as scope:
            async with serving_while(slow):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert trio.current_time() <= 3

    async def test_without_readiness_is_ready_as_it_begins(self) -> None:
        begun = trio.Event()

        async def run() -> None:
            begun.set()
            await trio.sleep_forever()

        async with serving_while(without_readiness(run)):
            await begun.wait()


class TestLoneErrors:
    def test_a_lone_error_comes_out_of_all_nesting(self) -> None:
        with pytest.raises(KeyError), lone_errors():
            raise ExceptionGroup("a", [ExceptionGroup("b", [KeyError("k")])])

    def test_two_stay_together(self) -> None:
        with pytest.raises(ExceptionGroup) as caught, lone_errors():
            raise ExceptionGroup("a", [ExceptionGroup("b", [KeyError("k"), ValueError("v")])])
        assert isinstance(caught.value.exceptions[0], ExceptionGroup)

    def test_no_error_and_bare_errors_pass(self) -> None:
        with lone_errors():
            pass
        with pytest.raises(KeyError), lone_errors():
            raise KeyError("k")


@pytest.mark.trio
class TestABrokerWhoseServiceFails:
    async def test_a_crashed_service_ends_it_in_order(
        self, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        crash = trio.Event()

        async def run_expiry(members: Members) -> None:
            await crash.wait()
            raise LookupError("a defect of the expiry scan")

        monkeypatch.setattr(Members, "run_expiry", run_expiry)
        notebook, disk = Notebook(), FaultyDisk()
        async with open_world() as world, name_server(world, notebook):

            async def serve_and_crash() -> None:
                async with broker_in(world, disk=disk, namesrv_addr=f"{NAME_SERVER}:{PORT}") as running:
                    async with running.client() as client:
                        assert (await client.send(b"stored")).code == 0
                    assert disk.exists("store/abort")
                    crash.set()
                    await trio.sleep_forever()

            with pytest.raises(LookupError, match="a defect of the expiry scan"), lone_errors():
                await serve_and_crash()
            assert notebook.told[-1].code == RequestCode.UNREGISTER_BROKER, "it said goodbye"
            assert not disk.exists("store/abort"), "the store was closed in order"
            monkeypatch.undo()
            async with broker_in(world, disk=disk) as running, running.client() as client:
                assert [message.body for message in await client.stored()] == [b"stored"]

    async def test_a_log_that_cannot_be_written(self, autojump_clock: trio.testing.MockClock) -> None:
        notebook, disk = Notebook(), FaultyDisk()
        async with open_world() as world, name_server(world, notebook):
            failed_at = []

            async def serve_and_fail() -> None:
                async with (
                    broker_in(world, disk=disk, namesrv_addr=f"{NAME_SERVER}:{PORT}") as running,
                    running.client() as client,
                ):
                    assert (await client.send(b"stored")).code == 0
                    disk.fail_next("pwrite")
                    failed_at.append(trio.current_time())
                    codes = {(await client.send(b"lost")).code for _ in range(2)}
                    assert codes == {ResponseCode.SERVICE_NOT_AVAILABLE}
                    await trio.sleep_forever()

            with pytest.raises(StoreFailedError) as caught, lone_errors():
                await serve_and_fail()
            assert 1 <= trio.current_time() - failed_at[0] < 2, "a second for the answers that say so"
            assert "Input/output error" in str(caught.value)
            assert notebook.told[-1].code == RequestCode.UNREGISTER_BROKER

    async def test_a_table_that_cannot_be_written_does_not_end_it(
        self, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        disk = FaultyDisk()
        async with open_world() as world:
            async with broker_in(world, disk=disk) as running, running.client() as client:
                disk.fail_next("rename", times=2)
                await client.tell(RequestCode.HEART_BEAT)
                await client.send(b"to a new topic", topic="New")
                await trio.sleep(10)
                assert (await client.send(b"again", topic="New")).code == 0
            assert "topics.json cannot be written" in caplog.text
            async with broker_in(world, disk=disk) as running, running.client() as client:
                assert len(await client.stored("New")) == 2

    async def test_what_fails_in_the_start_comes_out_bare(self, autojump_clock: trio.testing.MockClock) -> None:
        disk = FaultyDisk()
        disk.fail_next("lock")
        async with open_world() as world:
            with world.node(BROKER), pytest.raises(Exception, match="store"):
                await serve_broker(broker_config(), small_config("store"), disk=disk)


@pytest.mark.trio
async def test_registration_outlives_the_sessions(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """At the end clients go first, then the name servers hear of it, then the tables and the store are written."""
    caplog.set_level(logging.INFO)
    notebook, disk = Notebook(), FaultyDisk()
    async with open_world() as world, name_server(world, notebook):
        async with (
            broker_in(world, disk=disk, namesrv_addr=f"{NAME_SERVER}:{PORT}") as running,
            running.client() as client,
        ):
            await client.create_topic("Mine")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(client.pull, "Mine", sys_flag=2 | 4, suspend_timeout_millis=30_000))
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
            running.stop()
        assert notebook.told[-1].code == RequestCode.UNREGISTER_BROKER
        assert b"Mine" in disk.read_file("store/config/topics.json")
        assert not disk.exists("store/abort")
