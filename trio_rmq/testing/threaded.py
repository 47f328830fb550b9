"""An embedded broker on a thread of its own, for tests without Trio: plain functions, asyncio, any other framework.

The thread runs a Trio loop with one `embedded.broker`; it ends with the block, and nothing of it is left.  Calls of the
handle run in that thread, so that the broker's state still has one thread.  Invariant: nobody waits for a thread that
has ended: who waited, or calls it then, gets the reason.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

import anyio.to_thread
import trio

from trio_rmq.testing.embedded import EmbeddedBroker, broker
from trio_rmq.testing.handle import BrokerHandle

T = TypeVar("T")


class BrokerEndedError(RuntimeError):
    """The broker in the other thread has ended; its cause, if any, says why."""


class _BrokerThread:
    """The thread, its loop, and the broker in it."""

    def __init__(self, settings: tuple[str, ...], folder: str | None) -> None:
        self._settings = settings
        self._folder = folder
        self._ready: Future[EmbeddedBroker] = Future()
        self._failure: BaseException | None = None
        self._token: trio.lowlevel.TrioToken
        self._tasks: trio.Nursery
        self._thread = threading.Thread(target=self._run, name="trio-rmq broker")

    def start(self) -> EmbeddedBroker:
        """Return when the broker serves; raises what kept it from that."""
        self._thread.start()
        try:
            return self._ready.result()
        except BaseException:
            self._thread.join()
            raise

    def stop(self) -> None:
        """End the broker in order, and the thread with it; raises what ended the broker before."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._end)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def call(self, function: Callable[[], T]) -> T:
        """`function()`, called in the thread."""
        if threading.current_thread() is self._thread:
            return function()
        result: Future[T] = Future()
        self._soon(lambda: _settle(result, function))
        return result.result()

    def begin_waiting(
        self, predicate: Callable[[], object], timeout_seconds: float
    ) -> tuple[Future[None], trio.CancelScope]:
        """Have a task wait until `predicate()` is true; its end, and the scope in which it waits."""
        result: Future[None] = Future()
        scope = trio.CancelScope()
        self._soon(lambda: self._tasks.start_soon(self._wait, predicate, timeout_seconds, result, scope))
        return result, scope

    def cancel(self, scope: trio.CancelScope) -> None:
        """Cancel what waits in `scope`."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(scope.cancel)

    def _soon(self, function: Callable[[], object]) -> None:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            raise BrokerEndedError("the broker has ended") from self._failure

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: BLE001 - it goes to the test's thread
            self._failure = error
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with broker(*self._settings, folder=self._folder) as embedded, trio.open_nursery() as self._tasks:
            self._ready.set_result(embedded)
            await trio.sleep_forever()

    def _end(self) -> None:
        self._tasks.cancel_scope.cancel()

    async def _wait(
        self, predicate: Callable[[], object], timeout_seconds: float, result: Future[None], scope: trio.CancelScope
    ) -> None:
        """Settle `result`, whatever happens, and let no error of `predicate` reach the broker."""
        raised: list[BaseException] = []

        def ask() -> bool:
            try:
                return bool(predicate())
            except BaseException as error:  # noqa: BLE001 - it goes to the test's thread
                raised.append(error)
                return True

        try:
            with scope:
                await self._ready.result().wait_until(ask, timeout_seconds)
                if raised:
                    result.set_exception(raised[0])
                else:
                    result.set_result(None)
        except TimeoutError as error:
            result.set_exception(error)
        finally:
            if not result.done():
                result.set_exception(BrokerEndedError("the broker ended while a test waited for it"))


def _settle(result: Future[T], function: Callable[[], T]) -> None:
    """Give `result` what `function()` returns or raises."""
    try:
        value = function()
    except BaseException as error:  # noqa: BLE001 - it goes to the test's thread
        result.set_exception(error)
    else:
        result.set_result(value)


class _Elsewhere(BrokerHandle):
    """What the handles of a broker in another thread share."""

    def __init__(self, thread: _BrokerThread, embedded: EmbeddedBroker) -> None:
        super().__init__(embedded.parts, thread.call)
        self._thread = thread


class ThreadedBroker(_Elsewhere):
    """A broker in another thread, for plain functions."""

    def wait_until(self, predicate: Callable[[], object], timeout_seconds: float = 10.0) -> None:
        """Wait until `predicate()` is true; TimeoutError when it is not in time, BrokerEndedError when nobody can tell.

        It is asked again, in the broker's thread, whenever the broker answered a request or stored a message.
        """
        waiting, scope = self._thread.begin_waiting(predicate, timeout_seconds)
        try:
            waiting.result()
        finally:
            self._thread.cancel(scope)


class AsyncBroker(_Elsewhere):
    """A broker in another thread, for async functions of asyncio and of Trio."""

    async def wait_until(self, predicate: Callable[[], object], timeout_seconds: float = 10.0) -> None:
        """As ThreadedBroker.wait_until, while the loop goes on."""
        waiting, scope = self._thread.begin_waiting(predicate, timeout_seconds)
        try:
            await anyio.to_thread.run_sync(waiting.result, abandon_on_cancel=True)
        finally:
            self._thread.cancel(scope)


@contextmanager
def threaded_broker(*settings: str, folder: str | None = None) -> Iterator[ThreadedBroker]:
    """`embedded.broker` on a thread of its own, for the block of a plain function; arguments and errors as there.

    When the broker fails, the end of the block raises its reason, instead of the block's own error: that is its effect.
    """
    thread = _BrokerThread(settings, folder)
    embedded = thread.start()
    try:
        yield ThreadedBroker(thread, embedded)
    finally:
        thread.stop()


@asynccontextmanager
async def async_broker(*settings: str, folder: str | None = None) -> AsyncIterator[AsyncBroker]:
    """`threaded_broker` for async functions of any loop, which its start and end hold up for some milliseconds.

    In Trio `embedded.broker` is the better one: its failure ends the block at once.
    """
    thread = _BrokerThread(settings, folder)
    embedded = thread.start()
    try:
        yield AsyncBroker(thread, embedded)
    finally:
        thread.stop()
