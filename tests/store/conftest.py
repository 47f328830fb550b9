"""The same store tests run on the real disk and on its twin."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_rmq.store.disk import Disk
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place


@pytest.fixture(params=["disk", "twin"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place on the real disk, then one on the twin."""
    if request.param == "disk":
        return Place(Disk(), str(tmp_path / "store"))
    return Place(FaultyDisk(), "store")


@pytest.fixture
def twin() -> FaultyDisk:
    """A faultless twin."""
    return FaultyDisk()
