"""For tests: a broker inside a test, virtual time and networks, disks that fail, simulated clusters.

`async with trio_rmq.testing.broker() as broker:` is where most begin (docs/testing.md).  What is exported here is
imported when it is asked for first: the pytest plugin stands in this package too, and must cost a test run that does
not use it nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_rmq.testing.embedded import EmbeddedBroker, broker, virtual_broker
    from trio_rmq.testing.faults import Delay, Disconnect, Drop, Duplicate, Fail
    from trio_rmq.testing.threaded import AsyncBroker, ThreadedBroker, async_broker, threaded_broker

__all__ = [
    "AsyncBroker",
    "Delay",
    "Disconnect",
    "Drop",
    "Duplicate",
    "EmbeddedBroker",
    "Fail",
    "ThreadedBroker",
    "async_broker",
    "broker",
    "threaded_broker",
    "virtual_broker",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trio_rmq.testing import embedded, faults, threaded

    return next(getattr(module, name) for module in (embedded, faults, threaded) if hasattr(module, name))
