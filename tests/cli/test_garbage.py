"""Garbage collection in a server process: no walk over everything that there is."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import gc, json
from trio_rmq.cli.serve import _collect_garbage_from_now

walked = []
def note(phase, facts):
    if phase == "start" and facts["generation"] == 2:
        walked.append(len(gc.get_objects()))

gc.disable()
_collect_garbage_from_now()
frozen = gc.get_freeze_count()
gc.callbacks.append(note)
lasting = [[] for _ in range({lasting})]
grown = gc.get_freeze_count() - frozen
del lasting[:]
left = gc.get_freeze_count() - frozen
for _ in range({passing}):
    cycle = []
    cycle.append(cycle)
print(json.dumps([max(walked), grown, left, len(gc.get_objects())]))
"""


def _ran(lasting: int, passing: int) -> list[int]:
    program = PROGRAM.format(lasting=lasting, passing=passing)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    told: list[int] = json.loads(done.stdout)
    return told


def test_a_full_collection_walks_over_what_is_new_not_over_all_that_lasts() -> None:
    longest, grown, left, _ = _ran(lasting=400_000, passing=0)
    assert longest < 40_000
    assert grown > 300_000
    assert left < 40_000  # references count as ever: what nobody refers to is gone


def test_cycles_that_pass_are_still_collected() -> None:
    *_, objects = _ran(lasting=100_000, passing=300_000)
    assert objects < 40_000
