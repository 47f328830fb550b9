"""A Python environment of its own in the cache, for what only the benchmark needs: peers' clients and a profiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmark.load import BenchmarkError

PACKAGES = ("redis[hiredis]>=5", "nats-py>=2.7", "py-spy>=0.4")


def python_environment() -> Path:
    """Its interpreter; made on first use, or when PACKAGES changed."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(os.environ.get("RMQ_CACHE") or f"{base}/rmq-conformance") / "python-tools"
    python, stamp = folder / "bin" / "python", folder / "packages"
    if not stamp.exists() or stamp.read_text() != repr(PACKAGES):
        print(f"installing {', '.join(PACKAGES)} into {folder}", file=sys.stderr, flush=True)
        for words in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES],
        ):
            done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                raise BenchmarkError(f"{', '.join(PACKAGES)} could not be installed: {done.stderr[-2000:]}")
        stamp.write_text(repr(PACKAGES))
    return python
