"""Whole clusters from seeds: no promise is broken, runs repeat in other processes, and a broken store is caught."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trio_rmq.store.flush import LogFlusher
from trio_rmq.testing.simulation.plan import RATES, make_plan
from trio_rmq.testing.simulation.runner import run_plan


@pytest.mark.parametrize("seed", [1, 7], ids=["refused and restarted", "stopped in order after it"])
def test_a_failed_sync_and_a_power_loss_later_lose_nothing(seed: int) -> None:
    """The start after the failed sync took the kernel's pages for synced: acknowledged messages were lost later."""
    outcome = run_plan(make_plan(seed, 30.0))
    assert outcome.counts["sync error"]
    assert not outcome.problems


def test_asynchronous_flush_loses_at_a_power_loss_what_it_may_and_that_is_no_alarm() -> None:
    outcome = run_plan(make_plan(21, 30.0))
    assert outcome.counts["stored"] < outcome.counts["ok"]
    assert not outcome.problems


def test_delays_transactions_and_an_orderly_group_are_tried_and_keep_their_promises() -> None:
    outcome = run_plan(make_plan(9, 30.0))
    assert outcome.plan.options.rates.keys() == RATES.keys()
    assert min(outcome.counts[what] for what in ("begun", "failed", "decided", "asked", "crashes")) > 0
    assert not outcome.problems


def test_a_run_repeats_in_another_process_with_another_hash_seed() -> None:
    assert make_plan(9, 10.0).options.rates.keys() == RATES.keys()
    code = (
        "from trio_rmq.testing.simulation.plan import make_plan\n"
        "from trio_rmq.testing.simulation.runner import run_plan\n"
        "print(run_plan(make_plan(9, 10.0)).hash)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_a_log_end_that_is_not_written_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sync_alone(flusher: LogFlusher, start_offset: int) -> None:
        """The planted defect: what `sync_from` was."""
        for start in flusher._log.files.starts:
            if start + flusher._log.files.file_size > start_offset:
                flusher._log.files.pin(start)
                flusher._log.unsynced_starts.append(start)
        await flusher.sync()

    monkeypatch.setattr(LogFlusher, "sync_from", sync_alone)
    assert any(problem.kind == "lost" for problem in run_plan(make_plan(1, 30.0)).problems)
