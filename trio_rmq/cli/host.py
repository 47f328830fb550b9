"""What the commands ask of the operating system beside files and sockets: this process's age, its name, systemd.

The only file of the command line that opens a socket or reads a clock of its own: both are about this process, and
nothing that a simulation replaces.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import trio

KEPT_MEMORY_BYTES = 64 * 1024 * 1024
"""Most free memory at the heap's end that is kept."""
MAPPED_ALLOCATION_BYTES = 32 * 1024 * 1024
"""Allocations from this size on are mapped on their own; glibc takes no more."""
wall_seconds = time.perf_counter
"""Seconds on the wall since some moment."""
thread_cpu_seconds = time.thread_time
"""Seconds of CPU that the calling thread has taken."""
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def host_name() -> str:
    """The machine's name, which RocketMQ gives to a broker that nobody named."""
    return os.uname().nodename


def default_name_servers() -> str:
    """The environment's NAMESRV_ADDR, as RocketMQ's servers and clients honour it; empty when unset."""
    return os.environ.get("NAMESRV_ADDR", "").strip()


def seconds_since_start() -> float | None:
    """Seconds since the system started this process (to 10 ms), interpreter start included; None where unknown.

    A script that did other work before it became this process says when it ended that: TRIO_RMQ_STARTED, in seconds of
    /proc/uptime.
    """
    try:
        stat = Path("/proc/self/stat").read_text()
        started = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        started = max(started, float(os.environ.get("TRIO_RMQ_STARTED", "0")))
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def own_command() -> str:
    """How to call this command again from a shell: by its name where the shell finds it, else by its path."""
    if shutil.which("trio-rmq"):
        return "trio-rmq"
    beside = Path(sys.executable).with_name("trio-rmq")
    if not beside.exists():
        return f"{sys.executable} -m trio_rmq.cli.main"
    relative = os.path.relpath(beside)
    return str(beside) if relative.startswith("..") else relative


def notify_systemd(state: str) -> None:
    """Send `state` (`READY=1`, `STOPPING=1`) to the socket that systemd named in NOTIFY_SOCKET; nothing without it.

    See sd_notify(3).  A socket that cannot be reached is no reason to stop serving.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.sendto(state.encode(), address)
    except OSError:
        return


async def input_ended() -> None:
    """Return when standard input, a pipe, is at its end: whoever held its other end is gone."""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        while await stream.receive_some():
            pass


def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory for the next read rather than hand each chunk's back to the system.

    A server frees and takes the same few hundred KiB with every read; giving them back costs page faults, a tenth of
    the CPU of a 1 KB send.  Nothing happens where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY_BYTES)
    mallopt(_M_MMAP_THRESHOLD, MAPPED_ALLOCATION_BYTES)


def exit_now(status: int) -> None:
    """End the process at once, without cleaning up: the answer to a second signal."""
    os._exit(status)
