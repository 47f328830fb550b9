"""What name servers are told and when: at start, every period, at once on a change, at the end; and lost ones."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from tests.broker.name_servers import BOTH, PORT, SECOND_NAME_SERVER, Notebook, name_server, queues, route_of
from tests.broker.running import BROKER, BROKER_NAME, NAME_SERVER, Client, Running, broker_in
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.world import World, open_world
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.hashing import body_crc
from trio_rmq.wire.topics import decode_data_version, decode_topic_table

pytestmark = pytest.mark.trio

ONE = f"{NAME_SERVER}:{PORT}"
LOGGER = "trio_rmq.broker.registration"


@asynccontextmanager
async def told(
    notebook: Notebook, *, address: str = ONE, **settings: object
) -> AsyncIterator[tuple[World, Running, Client]]:
    """A broker that registers at a name server which takes notes on NAME_SERVER."""
    async with open_world() as world, name_server(world, notebook):
        with world.node(SECOND_NAME_SERVER):
            pass  # a machine that is there, and refuses connections until something listens
        async with (
            broker_in(world, disk=None, store=None, namesrv_addr=address, **settings) as running,
            running.client() as client,
        ):
            yield world, running, client


class TestWhen:
    async def test_the_whole_table_at_start_before_the_broker_is_ready(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        notebook = Notebook()
        async with told(notebook) as (_, running, _client):
            (first,) = notebook.told
            assert first.header == headers.RegisterBrokerRequestHeader(
                broker_name=BROKER_NAME,
                broker_addr=running.ready.address,
                cluster_name="DefaultCluster",
                ha_server_addr=f"{BROKER}:10912",
                broker_id=0,
                compressed=False,
                body_crc32=body_crc(first.request.body),
            )
            assert {"TBW102", "SELF_TEST_TOPIC", BROKER_NAME, "DefaultCluster"} <= set(first.topics)

    async def test_the_whole_table_every_period(self, autojump_clock: trio.testing.MockClock) -> None:
        notebook = Notebook()
        async with told(notebook):
            await trio.sleep(95)
        assert notebook.times == [0, 30, 60, 90]
        assert len({tuple(each.topics) for each in notebook.registrations}) == 1

    async def test_a_changed_topic_at_once_and_alone(self, autojump_clock: trio.testing.MockClock) -> None:
        notebook = Notebook()
        async with told(notebook) as (_, _running, client):
            await trio.sleep(10)
            await client.create_topic("Mine", queues=3)
            await trio.sleep(5)
            await client.send(topic="MadeBySend")
            await trio.sleep(16)
            whole = notebook.registrations[-1]
        assert notebook.times == [0, 10, 15, 30]
        assert [each.topics for each in notebook.registrations[1:3]] == [["Mine"], ["MadeBySend"]]
        assert {"Mine", "MadeBySend"} <= set(whole.topics)
        versions = [
            each.body.topic_config_serialize_wrapper.data_version for each in notebook.registrations if each.body
        ]
        assert versions[0].counter < versions[1].counter < versions[2].counter == versions[3].counter

    async def test_topics_that_change_together_go_together(self, autojump_clock: trio.testing.MockClock) -> None:
        notebook = Notebook()
        async with told(notebook) as (_, _running, client):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(client.create_topic, f"T{number}")
            await trio.sleep(1)
        later = notebook.registrations[1:]
        assert sorted(topic for each in later for topic in each.topics) == sorted(f"T{number}" for number in range(20))
        assert len(later) <= 3

    async def test_a_deleted_topic_is_not_registered_by_itself(self, autojump_clock: trio.testing.MockClock) -> None:
        notebook = Notebook()
        async with told(notebook) as (_, _running, client):
            await client.create_topic("Mine")
            await trio.sleep(1)
            assert (
                await client.ask(RequestCode.DELETE_TOPIC_IN_BROKER, headers.DeleteTopicRequestHeader(topic="Mine"))
            ).code == 0
            await trio.sleep(31)
        assert notebook.times == [0, 0, 30]
        assert "Mine" not in notebook.registrations[-1].topics

    async def test_goodbye_at_the_end_while_the_broker_still_listens(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        notebook = Notebook()
        async with told(notebook) as (_, running, _client):
            await trio.sleep(10)
            running.stop()
        goodbye = notebook.told[-1]
        assert goodbye.code == RequestCode.UNREGISTER_BROKER
        assert goodbye.request.decode_header(headers.UnRegisterBrokerRequestHeader).broker_addr == running.ready.address
        assert goodbye.at_seconds == pytest.approx(10, abs=0.1)

    async def test_without_force_only_what_is_news(self, autojump_clock: trio.testing.MockClock) -> None:
        notebook = Notebook(changed=False)
        async with told(notebook, force_register=False) as (_, _running, client):
            await trio.sleep(31)
            assert notebook.times == []
            asked = notebook.of(RequestCode.QUERY_DATA_VERSION)
            assert [round(each.at_seconds) for each in asked] == [0, 30]
            assert decode_data_version(asked[0].request.body).counter == 0
            await client.create_topic("Mine")
            await trio.sleep(1)
            assert notebook.registrations[-1].topics == ["Mine"], "a change is news without asking"
            notebook.changed = True
            await trio.sleep(30)
        assert notebook.times == [31, 60]


class TestWhat:
    async def test_a_topic_is_no_more_open_than_its_broker(self, autojump_clock: trio.testing.MockClock) -> None:
        notebook = Notebook()
        async with told(notebook, broker_permission=4) as (_, _running, client):
            await client.create_topic("Mine", permission=6)
            await trio.sleep(1)
            body = notebook.registrations[-1].body
            assert body is not None
            assert body.topic_config_serialize_wrapper.topic_config_table["Mine"].perm == 4
            own = decode_topic_table((await client.ask(RequestCode.GET_ALL_TOPIC_CONFIG)).body)
            assert own.topic_config_table["Mine"].perm == 6, "the broker's own table keeps what it was given"

    async def test_the_answer_says_which_topics_are_ordered(self, autojump_clock: trio.testing.MockClock) -> None:
        notebook = Notebook(order_table={"Mine": f"{BROKER_NAME}:1"})

        def ordered() -> bool:
            body = notebook.registrations[-1].body
            assert body is not None
            return body.topic_config_serialize_wrapper.topic_config_table["Mine"].order

        async with told(notebook) as (_, _running, client):
            await client.create_topic("Mine")
            await trio.sleep(31)
            assert ordered()
            notebook.order_table = {"Other": "x:1"}
            await trio.sleep(60)
            assert not ordered()

    async def test_a_refusal_is_said_once_and_so_is_its_end(
        self, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger=LOGGER)
        notebook = Notebook(code=1, remark="not today")
        async with told(notebook):
            await trio.sleep(65)
            notebook.code = 0
            await trio.sleep(60)
        said = [record.message for record in caplog.records if record.name == LOGGER]
        assert len(said) == 2
        assert "cannot register at name server 10.0.0.1:9876" in said[0]
        assert "not today" in said[0]
        assert said[1] == "registered at name server 10.0.0.1:9876 again"


class TestLost:
    async def test_one_down_then_back_does_not_touch_the_other(
        self, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger=LOGGER)
        up, down = Notebook(), Notebook()
        async with told(up, address=BOTH) as (world, _running, client):
            assert trio.current_time() < 1, "a port that refuses delays nothing"
            await trio.sleep(40)
            async with name_server(world, down, SECOND_NAME_SERVER):
                await trio.sleep(10)
                await client.create_topic("Mine")
                await trio.sleep(11)
                assert up.times == [0, 30, 50, 60]
                assert down.times == [50, 60], "at the next thing to tell"
                assert "TBW102" in down.registrations[0].topics, "over a new connection the whole table goes"
        said = [record.message for record in caplog.records if record.name == LOGGER]
        assert len([line for line in said if "cannot register at name server 10.0.0.9:9876" in line]) == 1
        assert said.count("registered at name server 10.0.0.9:9876 again") == 1
        assert up.told[-1].code == RequestCode.UNREGISTER_BROKER

    async def test_a_silent_one_delays_the_other_by_nothing(self, autojump_clock: trio.testing.MockClock) -> None:
        up, mute = Notebook(), Notebook()
        async with told(up, address=BOTH) as (world, running, client), name_server(world, mute, SECOND_NAME_SERVER):
            await trio.sleep(31)
            mute.silent = True
            for number in range(3):
                await trio.sleep(2)
                await client.create_topic(f"T{number}")
            await trio.sleep(1)
            assert up.times[2:] == [33, 35, 37]
            stopped_at = trio.current_time()
            running.stop()
        assert up.told[-1].code == RequestCode.UNREGISTER_BROKER
        assert up.told[-1].at_seconds - stopped_at < 0.1

    async def test_goodbye_to_a_silent_one_is_given_up(self, autojump_clock: trio.testing.MockClock) -> None:
        mute = Notebook()
        async with open_world() as world, name_server(world, mute):
            async with broker_in(world, namesrv_addr=ONE):
                mute.silent = True
                stopped_at = trio.current_time()
            assert trio.current_time() - stopped_at == pytest.approx(3.0, abs=0.1)
        assert mute.told[-1].code == RequestCode.UNREGISTER_BROKER

    async def test_a_name_server_off_the_network_delays_the_start_by_one_time_out(
        self, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        up = Notebook()
        async with open_world() as world, name_server(world, up), name_server(world, Notebook(), SECOND_NAME_SERVER):
            world.network.cut(BROKER, SECOND_NAME_SERVER)
            async with broker_in(world, namesrv_addr=BOTH):
                assert up.times == [0]
                assert trio.current_time() <= 6
            assert trio.current_time() <= 6.1, "no goodbye to who is not there"
        assert "cannot register at name server 10.0.0.9:9876: no connection" in caplog.text

    async def test_a_name_server_that_began_anew_gets_the_whole_table(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        before, after = Notebook(), Notebook()
        async with (
            open_world() as world,
            name_server(world, before) as first,
            broker_in(world, namesrv_addr=ONE) as running,
            running.client() as client,
        ):
            await trio.sleep(10)
            first.cancel()
            await trio.sleep(1)
            async with name_server(world, after):
                await client.create_topic("Mine")
                await trio.sleep(1)
                assert after.times == [11], "a change finds the new one at once"
                assert {"Mine", "TBW102"} <= set(after.registrations[0].topics)
                await trio.sleep(20)
                assert after.times == [11, 30]

    async def test_a_broker_whose_name_server_is_gone_for_good_ends_at_once(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with open_world() as world:
            async with broker_in(world, namesrv_addr=ONE):
                await trio.sleep(40)
                stopped_at = trio.current_time()
            assert trio.current_time() - stopped_at < 0.1


class TestRealNameServers:
    async def test_both_know_the_same_and_forget_it_at_the_end(self, autojump_clock: trio.testing.MockClock) -> None:
        servers = [NAME_SERVER, SECOND_NAME_SERVER]
        async with open_world() as world, name_server(world), name_server(world, None, SECOND_NAME_SERVER):
            async with broker_in(world, namesrv_addr=BOTH) as running, running.client() as client:
                await client.create_topic("Mine", queues=3, permission=4)
                await trio.sleep(1)
                for server in servers:
                    assert queues(await route_of(world, "Mine", server)) == [(BROKER_NAME, 3, 4)]
            for server in servers:
                assert await route_of(world, "Mine", server) is None

    async def test_restart_of_a_name_server(self, autojump_clock: trio.testing.MockClock) -> None:
        async with (
            open_world() as world,
            name_server(world) as first,
            broker_in(world, namesrv_addr=ONE) as running,
            running.client() as client,
        ):
            await client.create_topic("Mine")
            await trio.sleep(1)
            assert queues(await route_of(world, "Mine"))
            first.cancel()
            await trio.sleep(1)
            async with name_server(world):
                assert queues(await route_of(world, "Mine")) == []
                await trio.sleep(30)
                assert queues(await route_of(world, "Mine")) == [(BROKER_NAME, 1, 6)]

    async def test_restart_of_a_broker_killed(self, autojump_clock: trio.testing.MockClock) -> None:
        disk = FaultyDisk()
        async with open_world() as world, name_server(world):
            with suppress(BaseExceptionGroup):
                async with broker_in(world, disk=disk, namesrv_addr=ONE) as running, running.client() as client:
                    await client.create_topic("Mine")
                    await trio.sleep(1)
                    assert queues(await route_of(world, "Mine"))
                    survivor = disk.survivor_of_kill()
                    world.network.kill_process(BROKER)
                    await trio.sleep_forever()
            await trio.sleep(1)
            assert await route_of(world, "Mine") is None, "a closed connection drops the broker"
            async with broker_in(world, disk=survivor, namesrv_addr=ONE):
                assert queues(await route_of(world, "Mine")) == [(BROKER_NAME, 1, 6)]
