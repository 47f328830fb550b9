"""The clock that calls are timed by is the running loop's own, virtual where the loop's is."""

from __future__ import annotations

import anyio
import pytest
import trio.testing

from trio_rmq.client.consuming import loop_clock


@pytest.mark.anyio
async def test_it_tells_the_time_of_the_running_loop() -> None:
    clock = loop_clock()
    before = anyio.current_time()
    assert before <= clock() <= anyio.current_time()
    assert clock != anyio.current_time  # found once, not anew for every reading


def test_it_is_the_virtual_clock_of_a_virtual_loop() -> None:
    async def read() -> tuple[float, float]:
        clock = loop_clock()
        begun = clock()
        await anyio.sleep(1000)
        return clock() - begun, anyio.current_time() - clock()

    assert trio.run(read, clock=trio.testing.MockClock(autojump_threshold=0)) == (1000, 0)
