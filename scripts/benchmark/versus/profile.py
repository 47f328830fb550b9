"""`versus --profile ROW`: where our server's time goes under that row's load, sampled by py-spy from outside.

Two views that correct each other: the share of system calls, from the kernel's own count of the process's CPU time; and
the Python functions, from samples of whoever holds the interpreter's lock.  A system call gives the lock up, so that
waiting and the kernel's work are in neither sample nor share.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmark.load import BenchmarkError, process_cpu_parts
from benchmark.servers import our_server
from benchmark.versus.document import markdown_table, write_into_document
from benchmark.versus.environment import python_environment
from benchmark.versus.loads import LOADS, Load, Terms

SAMPLES_A_SECOND = 400
SHOWN = 15


def profile(key: str, terms: Terms, document: Path | None) -> None:
    """Run the row's load once on our server; print both views, or put them into the document."""
    load = next((load for load in LOADS if load.key == key), None)
    if load is None or load.key == "idle":
        raise BenchmarkError(f"{key!r} has no load to profile; the rows with one are those compared with Apache's")
    samples, (user_seconds, system_seconds) = _sampled(load, terms)
    total = sum(samples.values())
    if not total:
        raise BenchmarkError("py-spy saw nothing: raise --seconds")
    rows = _most(samples, total)
    kernel = f"the kernel's share of the CPU: {system_seconds / (user_seconds + system_seconds):.0%}"
    titles = ["function", "itself", "with what it calls"]
    if document is not None:
        lines = [f"{load.title}; {kernel}; of the rest, functions by samples of the lock's holder.", ""]
        lines += markdown_table(titles, rows, words=1)
        write_into_document("\n".join(lines) + "\n", document, f"profile {key}")
        return
    table = Table(*titles, title=f"{load.title}: samples of the lock's holder")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(kernel)


def _most(samples: Counter[str], total: int) -> list[list[str]]:
    """The functions that took most by themselves, with their shares."""
    alone: Counter[str] = Counter()
    with_called: Counter[str] = Counter()
    for stack, count in samples.items():
        frames = [frame.rpartition(":")[0] + ")" for frame in stack.split(";")]
        alone[frames[-1]] += count
        with_called.update(dict.fromkeys(frames, count))
    return [
        [name, f"{count / total:.1%}", f"{with_called[name] / total:.1%}"] for name, count in alone.most_common(SHOWN)
    ]


def _sampled(load: Load, terms: Terms) -> tuple[Counter[str], tuple[float, float]]:
    """Samples by stack, and the user and system seconds, of the measured time."""
    python = python_environment()
    with our_server(*load.settings, folder=terms.folder) as server, tempfile.NamedTemporaryFile("r") as file:
        begun = threading.Event()
        server.on_begin = begun.set
        parts: list[tuple[float, float]] = []
        complaints: list[str] = []

        def watch() -> None:
            begun.wait()
            parts.append(process_cpu_parts(server.process.pid))
            done = subprocess.run(
                [
                    str(python.with_name("py-spy")), "record", "--gil", "--pid", str(server.process.pid),
                    "--rate", str(SAMPLES_A_SECOND), "--duration", str(max(terms.seconds - 1, 1)),
                    "--format", "raw", "--output", file.name,
                ],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            parts.append(process_cpu_parts(server.process.pid))
            if done.returncode:
                complaints.append(done.stderr)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            load.measure(server, terms)
        finally:
            begun.set()  # also when it failed before
            watcher.join()
        if complaints:
            raise BenchmarkError(f"py-spy failed (it needs root, or ptrace_scope 0): {complaints[0][-1000:]}")
        samples: Counter[str] = Counter()
        for line in Path(file.name).read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            samples[stack] += int(count)
    (user, system), (user_after, system_after) = parts
    return samples, (user_after - user, system_after - system)
