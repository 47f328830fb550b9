"""What the tests of the offline tools share: a store whose records have known sizes, times, tags and keys."""

from __future__ import annotations

from collections.abc import Mapping

from trio_rmq.clock import use_wall_clock
from trio_rmq.testing.stores import Place, new_message, stored

RECORD_SIZE = 91 + 500 + 1 + len("TAGS\x01t0\x02KEYS\x01k000")
START_MS = 1_790_000_000_000


async def fill(
    place: Place, count: int, *, start: int = 0, topic: str = "T", settings: Mapping[str, object] | None = None
) -> None:
    """Messages of RECORD_SIZE bytes, over three queues, a second apart."""
    async with place.open(**(settings or {})) as store:
        for n in range(start, start + count):
            message = new_message(str(n).encode().ljust(500), topic=topic, queue_id=n % 3, tags=f"t{n % 5}")
            message.properties = f"TAGS\x01t{n % 5}\x02KEYS\x01k{n:03d}"
            with use_wall_clock(lambda: START_MS + n * 1000):  # noqa: B023 - used at once
                stored(store.append([message]))
