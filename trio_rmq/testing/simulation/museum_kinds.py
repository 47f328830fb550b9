"""The museum's room of delays, transactions and order: defects that only messages of these kinds show.

I5 is the order of a queue at an orderly group, I7 what is promised of transactions, I8 what is of delays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from trio_rmq.broker.delay import DelayService, _Level
from trio_rmq.broker.half_messages import HalfMessage
from trio_rmq.broker.locks import QueueLocks
from trio_rmq.broker.transactions import Transactions
from trio_rmq.client.held_queue import HeldQueue
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.client.orderly_consuming import OrderlyConsuming
from trio_rmq.store.dispatch import DelayLevels
from trio_rmq.store.messages import AppendResult, NewMessage
from trio_rmq.testing.simulation.piece import Piece, kinds_of_faults, replaced
from trio_rmq.testing.simulation.plan import Plan
from trio_rmq.wire.groups import MessageQueue


def _delays(plan: Plan) -> bool:
    return "delays" in plan.options.rates


def _delays_and_starts_again(plan: Plan) -> bool:
    return _delays(plan) and bool(kinds_of_faults(plan) & {"kill", "power"})


def _delays_and_steps_back(plan: Plan) -> bool:
    return _delays(plan) and any(fault.kind == "clock step" and fault.amount < 0 for fault in plan.faults)


def _transactions(plan: Plan) -> bool:
    return "transactions" in plan.options.rates


def _keyed(plan: Plan) -> bool:
    return "keyed" in plan.options.rates


def _keyed_and_members_come(plan: Plan) -> bool:
    comings = kinds_of_faults(plan) & {"consumer killed", "consumer stopped"}
    return _keyed(plan) and bool(comings) and plan.options.ordered_seconds > 0


# Delays ----------------------------------------------------------------------------------------------------------


def _deliver_early() -> AbstractContextManager[None]:
    original = DelayLevels.deliver_time_ms

    def deliver_time_ms(self: DelayLevels, properties: bytes, store_timestamp_ms: int) -> int | None:
        due_ms = original(self, properties, store_timestamp_ms)
        return due_ms and store_timestamp_ms + (due_ms - store_timestamp_ms) // 2

    return replaced(DelayLevels, "deliver_time_ms", deliver_time_ms)


def _deliver_at_once_when_the_clock_is_set_back() -> AbstractContextManager[None]:
    def remaining_ms(self: _Level, offset: int, due_ms: int, now_ms: int) -> float:
        remaining = due_ms - now_ms
        return 0 if self.delay_ms is not None and remaining > self.delay_ms else remaining

    return replaced(_Level, "remaining_ms", remaining_ms)


def _forget_what_waits() -> AbstractContextManager[None]:
    original = DelayService._find_levels

    def find_levels(self: DelayService) -> list[_Level]:
        levels = original(self)
        for level in levels:
            level.next_offset = self._store.max_offset("SCHEDULE_TOPIC_XXXX", level.queue_id)
        return levels

    return replaced(DelayService, "_find_levels", find_levels)


# Transactions ----------------------------------------------------------------------------------------------------


def _commit_what_is_rolled_back() -> AbstractContextManager[None]:
    original = Transactions.end

    def end(
        self: Transactions, commits: Sequence[tuple[HalfMessage, NewMessage]], rollbacks: Sequence[HalfMessage]
    ) -> list[AppendResult]:
        results = original(self, [*commits, *((half, self.committed(half)) for half in rollbacks)], [])
        return results[: len(commits)]

    return replaced(Transactions, "end", end)


def _ask_nobody() -> AbstractContextManager[None]:
    async def check(self: Transactions, taken: Sequence[tuple[int, int]]) -> bool:
        return True

    return replaced(Transactions, "_check", check)


# Order -----------------------------------------------------------------------------------------------------------


def _grant_every_lock() -> AbstractContextManager[None]:
    def lock(
        self: QueueLocks, group: str, client_id: str, queues: Iterable[MessageQueue], *, now: float
    ) -> list[MessageQueue]:
        return list(queues)

    return replaced(QueueLocks, "lock", lock)


def _put_what_failed_behind_the_rest() -> AbstractContextManager[None]:
    original = OrderlyConsuming._count_failure

    async def count_failure(
        self: OrderlyConsuming, held: HeldQueue, messages: list[ReceivedMessage]
    ) -> list[ReceivedMessage]:
        held.waiting.extend(await original(self, held, messages))
        return []

    return replaced(OrderlyConsuming, "_count_failure", count_failure)


KIND_DEFECTS = (
    Piece("half the delay", "I8", "delayed messages come after half their delay", _deliver_early, _delays),
    Piece(
        "clock set back",
        "I8; correctDeliverTimestamp",
        "what waits is delivered at once when the clock was set back",
        _deliver_at_once_when_the_clock_is_set_back,
        _delays_and_steps_back,
    ),
    Piece(
        "delays forgotten",
        "I8; #6881",
        "a start takes for delivered what still waits",
        _forget_what_waits,
        _delays_and_starts_again,
    ),
    Piece(
        "rollback committed",
        "I7",
        "what is rolled back is delivered",
        _commit_what_is_rolled_back,
        _transactions,
    ),
    Piece("nobody asked", "I7; #8311", "no producer is asked about an open transaction", _ask_nobody, _transactions),
    Piece(
        "locks for all",
        "I5; lockInStrictMode",
        "whoever asks for a queue's lock gets it",
        _grant_every_lock,
        _keyed_and_members_come,
        60.0,
    ),
    Piece(
        "failed ones later",
        "I5",
        "an orderly consumer tries a failed message again after those that came behind it",
        _put_what_failed_behind_the_rest,
        _keyed,
    ),
)
"""Defects, which must be found."""
