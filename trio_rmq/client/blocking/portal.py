"""How a program without an event loop uses an async client: the loop runs in a thread of its own, behind a portal.

Each client opens a loop for itself, or shares one that it is given: `portal=BlockingPortalProvider()`.  The loop's
thread ends with the last client that uses it.  Invariants: every call runs in the loop's thread, so that the client's
state still has one thread; a call that is interrupted (Ctrl-C) is cancelled there before the interrupt goes on; a
client is closed in order, with its goodbye, whatever ended its block.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, BlockingPortalProvider

from trio_rmq.errors import ClientError

__all__ = ["BlockingClient", "BlockingPortalProvider"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C", bound=AbstractAsyncContextManager[Any])
P = ParamSpec("P")
T = TypeVar("T")


class BlockingClient(Generic[C]):
    """A client of type `C` with methods that block; a context manager, or `open` and `close` by hand.

    Any thread may call it.  Do not open it before a fork: threads do not survive one; and do not call it from an event
    loop's thread, which it would stop: use the async client there.
    """

    def __init__(self, make: Callable[[], C], portal: BlockingPortalProvider | None) -> None:
        self._make = make
        self._provider = portal or BlockingPortalProvider()
        self._stack: ExitStack | None = None
        self._portal: BlockingPortal
        self._client: C

    def open(self) -> Self:
        """Start, as entering the block does; ClientError when it is open already, else as the async client."""
        if self._stack is not None:
            raise ClientError(f"the {type(self).__name__} is open already")
        with ExitStack() as stack:
            self._portal = stack.enter_context(self._provider)
            self._client = self._portal.call(self._make)
            stack.enter_context(self._portal.wrap_async_context_manager(self._client))
            self._stack = stack.pop_all()
        return self

    def close(self) -> None:
        """End in order: nothing more begins, progress is kept, connections are closed.  Once is enough."""
        stack, self._stack = self._stack, None
        if stack is not None:
            # Never with the block's error: it is the calling thread's, and Ctrl-C would end the loop of all clients.
            stack.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `function` in the loop; what interrupts this thread meanwhile cancels it."""

        def call() -> Awaitable[T]:
            return function(*args, **kwargs)

        future = self._portal.start_task_soon(call)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _wait_answering(
        self, function: Callable[[Callable[[A], Awaitable[B]]], Awaitable[T]], answer: Callable[[A], B]
    ) -> T:
        """Await `function(ask)` in the loop, where `await ask(x)`, once at most, is `answer(x)` called in this thread.

        What `answer` raises is raised there if it is an Exception; else it ends the call as an interrupt does.
        """
        questions: SimpleQueue[_Question[A, B] | None] = SimpleQueue()

        async def ask(argument: A) -> B:
            question: _Question[A, B] = _Question(argument)
            questions.put(question)
            await question.answered.wait()
            if question.error is not None:
                raise question.error
            return question.answers[0]

        def call() -> Awaitable[T]:
            return function(ask)

        future = self._portal.start_task_soon(call)
        future.add_done_callback(lambda _: questions.put(None))
        try:
            question = questions.get()
            if question is not None:
                question.put_to(answer)
                self._portal.call(question.answered.set)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a plain function in the loop."""

        def call() -> T:
            return function(*args, **kwargs)

        return self._portal.call(call)

    @property
    def _async_client(self) -> C:
        """The async client; ClientError when it is not open."""
        if self._stack is None:
            raise ClientError(f"the {type(self).__name__} is not open: use it inside `with`, or call open()")
        return self._client


class _Question(Generic[A, B]):
    """What the loop asks of the calling thread, and the answer; made in the loop."""

    def __init__(self, argument: A) -> None:
        self.argument = argument
        self.answered = anyio.Event()
        self.answers: list[B] = []
        self.error: Exception | None = None

    def put_to(self, answer: Callable[[A], B]) -> None:
        """Call `answer` and keep what it returns or raises."""
        try:
            self.answers.append(answer(self.argument))
        except Exception as error:  # noqa: BLE001 - the function is the user's: what it raises goes to who asked
            self.error = error
