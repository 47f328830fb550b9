"""The pytest plugin: a broker of its own for every test that asks for one.

- `rocketmq`, for async tests: in the test's nursery under pytest-trio, on a thread of its own under anyio's plugin
  (Trio and asyncio).
- `rocketmq_thread`, for plain tests and every other kind: on a thread of its own.
- `virtual_rocketmq`, for pytest-trio's tests: in the test's nursery, on virtual time, which the test then is on too.

`@pytest.mark.rocketmq("KEY=VALUE", ..., folder=True)` gives settings, and a folder below `tmp_path` for the store.
Nothing is imported before the first fixture is used, and nothing is kept between tests, so that any number of workers
(pytest-xdist) run side by side.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from trio_rmq.testing.embedded import EmbeddedBroker
    from trio_rmq.testing.threaded import AsyncBroker, ThreadedBroker

MARKER = "rocketmq"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*settings, folder=False): settings (KEY=VALUE) of this test's RocketMQ broker; whether its store is "
        "in a folder below tmp_path instead of in memory",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Have tests with a virtual broker run on virtual time."""
    if "virtual_rocketmq" in getattr(item, "fixturenames", ()) and item.get_closest_marker("trio") is not None:
        item.add_marker(pytest.mark.trio(run=_run_on_virtual_time), append=False)


def _run_on_virtual_time(main: Callable[[], Awaitable[Any]], *, clock: Any = None, **options: Any) -> Any:
    import trio
    from trio.testing import MockClock

    return trio.run(main, clock=clock or MockClock(autojump_threshold=0), **options)


@pytest.fixture
async def rocketmq(request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedBroker | AsyncBroker]:
    """A broker for an async test."""
    from trio_rmq.testing.embedded import broker
    from trio_rmq.testing.threaded import async_broker

    settings, folder = _asked_for(request)
    if "anyio_backend" in request.fixturenames:
        # anyio runs fixtures and tests in one task that must never be cancelled, as a failing broker would do.
        async with async_broker(*settings, folder=folder) as beside:
            yield beside
    else:
        async with broker(*settings, folder=folder) as within:
            yield within


@pytest.fixture
def rocketmq_thread(request: pytest.FixtureRequest) -> Iterator[ThreadedBroker]:
    """A broker for a plain test."""
    from trio_rmq.testing.threaded import threaded_broker

    settings, folder = _asked_for(request)
    with threaded_broker(*settings, folder=folder) as beside:
        yield beside


@pytest.fixture
async def virtual_rocketmq(request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedBroker]:
    """A broker for a Trio test on virtual time; clients opened in the test are on the same virtual network."""
    from trio_rmq.testing.embedded import virtual_broker

    settings, folder = _asked_for(request)
    if folder is not None:
        raise pytest.UsageError("a virtual broker's store is in memory: leave out folder=True")
    async with virtual_broker(*settings) as running:
        yield running


def _asked_for(request: pytest.FixtureRequest) -> tuple[tuple[str, ...], str | None]:
    marker = request.node.get_closest_marker(MARKER)
    if marker is None:
        return (), None
    unknown = set(marker.kwargs) - {"folder"}
    if unknown:
        raise pytest.UsageError(f"the marker {MARKER} takes settings and folder=, not {', '.join(sorted(unknown))}")
    folder = str(request.getfixturevalue("tmp_path") / "rocketmq") if marker.kwargs.get("folder") else None
    return marker.args, folder
