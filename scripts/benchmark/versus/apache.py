"""Apache's name server and broker as measured processes, and its Java client's class path.

Jars come from Maven Central into the cache of the interop tests (`tests/interop/java-it/lib.sh`), once.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmark.load import BenchmarkError
from benchmark.servers import MeasuredServer, stop_process
from trio_rmq.testing.apache_java import JAVA_OPENS, LOGBACK

SERVER_VERSION = "4.9.7"
CLIENT_VERSION = "4.9.8"
BOOT_SECONDS = 60.0

_INTEROP = Path(__file__).parents[3] / "tests" / "interop"
_JAVA = Path(__file__).parent / "java"

_ROCKETMQ_HEADERS = "-Drocketmq.serialize.type=ROCKETMQ"
BROKER_JVM = (
    "-server", "-Xms3g", "-Xmx3g", "-XX:+UseG1GC", "-XX:G1HeapRegionSize=16m", "-XX:G1ReservePercent=25",
    "-XX:InitiatingHeapOccupancyPercent=30", "-XX:SoftRefLRUPolicyMSPerMB=0", "-XX:-OmitStackTraceInFastThrow",
    "-XX:MaxDirectMemorySize=3g",
)  # fmt: skip
"""What Apache's start script gives a broker, with a heap for this size of machine and without AlwaysPreTouch, which
would put the whole heap into its resident memory and its start."""
NAME_SERVER_JVM = ("-server", "-Xms256m", "-Xmx256m")


def client_class_path() -> str:
    """The class path of `java/Load.java` on Apache's client; jars fetched and the program compiled on first use."""
    jars = _jars("java", "pom.xml", f"-Dclient.version={CLIENT_VERSION}")
    sources = sorted(_JAVA.glob("*.java"))
    classes = jars.parent / "versus-classes"
    built = classes / "built"
    if not built.exists() or built.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        words = [_program("javac"), "-nowarn", "-Xlint:-deprecation", "-encoding", "UTF-8", "-d", str(classes)]
        subprocess.run([*words, "-cp", f"{jars}/*", *map(str, sources)], check=True, timeout=120)
        built.touch()
    return f"{classes}:{jars}/*"


@contextmanager
def apache_servers(*overrides: str, folder: str | None = None) -> Iterator[MeasuredServer]:
    """Name server and broker on a fresh store, ready; `overrides` are KEY=VALUE settings of the broker."""
    jars = _jars("java-it", "pom-server.xml")
    scratch = Path(tempfile.mkdtemp(prefix="apache-bench-", dir=folder))
    namesrv_port, port = _free_ports(2)
    started = time.perf_counter()
    namesrv = _start(
        jars, scratch / "namesrv", NAME_SERVER_JVM, "org.apache.rocketmq.namesrv.NamesrvStartup",
        [f"listenPort={namesrv_port}"],
    )  # fmt: skip
    try:
        broker = _start(
            jars, scratch / "broker", BROKER_JVM, "org.apache.rocketmq.broker.BrokerStartup",
            [
                "brokerClusterName=DefaultCluster", "brokerName=broker-a", "brokerId=0", "brokerIP1=127.0.0.1",
                f"listenPort={port}", f"haListenPort={port + 1}", f"namesrvAddr=127.0.0.1:{namesrv_port}",
                f"storePathRootDir={scratch}/store", f"storePathCommitLog={scratch}/store/commitlog",
                # A load that fills the machine is no reason to refuse it, nor is a disk that others use.
                "waitTimeMillsInSendQueue=5000", "osPageCacheBusyTimeOutMills=5000", "diskMaxUsedSpaceRatio=95",
                *overrides,
            ],
        )  # fmt: skip
        try:
            yield MeasuredServer(broker, f"127.0.0.1:{port}", started, f"127.0.0.1:{namesrv_port}", (namesrv,))
        finally:
            stop_process(broker)
    finally:
        stop_process(namesrv)
        shutil.rmtree(scratch, ignore_errors=True)


def _start(
    jars: Path, home: Path, jvm: Sequence[str], main_class: str, configuration: Sequence[str]
) -> subprocess.Popen[str]:
    """The process, once it said that it is up; its output goes on into a file in `home`."""
    (home / "conf").mkdir(parents=True)
    for kind in ("namesrv", "broker"):
        (home / "conf" / f"logback_{kind}.xml").write_text(LOGBACK)
    (home / "server.conf").write_text("\n".join(configuration) + "\n")
    process = subprocess.Popen(
        [
            _program("java"), *JAVA_OPENS, *jvm, _ROCKETMQ_HEADERS, f"-Duser.home={home}",
            f"-Drocketmq.client.logRoot={home}", "-cp", f"{jars}/*", main_class, "-c", str(home / "server.conf"),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "ROCKETMQ_HOME": str(home)},
    )  # fmt: skip
    up = threading.Event()
    log = home / "out.log"

    def copy() -> None:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        with log.open("w") as out, process.stdout:
            for line in process.stdout:
                out.write(line)
                out.flush()
                if re.search("boot success", line):
                    up.set()

    threading.Thread(target=copy, daemon=True).start()
    if not up.wait(BOOT_SECONDS):
        process.kill()
        process.wait()
        raise BenchmarkError(f"{main_class} was not up within {BOOT_SECONDS:.0f} s: {log.read_text()[-2000:]}")
    return process


def _jars(folder: str, pom: str, *properties: str) -> Path:
    """A folder with the jars of that pom of the interop tests."""
    _program("mvn")
    script = 'set -euo pipefail; source "$0/java-it/lib.sh"; here=$0/$1; shift; jars "$@"'
    done = subprocess.run(
        ["bash", "-c", script, str(_INTEROP), folder, pom, *properties],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"Apache's jars could not be fetched: {done.stderr[-2000:]}")
    return Path(re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.strip().splitlines()[-1]))


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BenchmarkError(f"{name} is not installed; on Debian: apt-get install default-jdk-headless maven")
    return path


def _free_ports(count: int) -> list[int]:
    """Free loopback ports, each with the two below it (fast port) and the one above (replication) free as well."""
    found: list[int] = []
    while len(found) < count:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        try:
            for offset in (-2, -1, 0, 1):
                socket.create_server(("127.0.0.1", port + offset)).close()
        except OSError:
            continue
        if all(abs(port - other) > 4 for other in found):
            found.append(port)
    return found
