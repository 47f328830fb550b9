"""Starts the foreign programs that the interop tests talk to, and our own servers as real processes.

Everything is fetched by package name into a cache outside the clone (`RMQ_CACHE`, else the user's cache folder) on
first use.  A peer that cannot be had or does not start is an error, never a skip.  Each server is waited for by what it
says (Apache's boot line and registration, our readiness datagram), not by time.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trio_rmq.testing.apache_java import JAVA_OPENS, LOGBACK
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.frame import FrameSplitter, encode_frame
from trio_rmq.wire.headers import GetRouteInfoRequestHeader

HERE = Path(__file__).parent
JAVA_IT = HERE / "java-it"
CLUSTER = "DefaultCluster"
APACHE_SERVER = "4.9.7"
"""The version of Apache's servers unless a test says otherwise."""


class PeerError(RuntimeError):
    """A foreign program is missing, did not start or did not finish."""


def cache_folder() -> Path:
    """Where fetched jars and packages live between runs; outside the clone."""
    base = os.environ.get("RMQ_CACHE") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rmq-conformance"
    )
    folder = Path(base)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def need(program: str) -> str:
    """The path of `program`; PeerError names what to install when it is not there."""
    path = shutil.which(program)
    if path is None:
        raise PeerError(
            f"{program} is not installed; on Debian: apt-get install default-jdk-headless maven nodejs npm golang"
        )
    return path


def jars(folder: Path, pom: str, *properties: str) -> Path:
    """A folder with the jars of `folder/pom`, fetched once by Maven into a repository of its own."""
    need("mvn")
    need("java")
    script = 'set -euo pipefail; source "$0/lib.sh"; here=$1; shift; jars "$@"'
    done = subprocess.run(
        ["bash", "-c", script, str(JAVA_IT), str(folder), pom, *properties],
        capture_output=True,
        text=True,
        env={**os.environ, "RMQ_CACHE": str(cache_folder())},
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise PeerError(f"the jars of {pom} could not be fetched: {done.stderr[-2000:]}")
    return Path(done.stdout.strip().splitlines()[-1])


def java_peer_class_path(client_version: str) -> str:
    """The class path of our small Java programs on Apache's client of that version."""
    lib = jars(HERE / "java", "pom.xml", f"-Dclient.version={client_version}")
    sources = sorted((HERE / "java" / "src").rglob("*.java"))
    # By content: clones share the cache, and their programs may differ.
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    classes = cache_folder() / f"peer-classes-{client_version}-{digest}"
    stamp = classes / "built"
    if not stamp.exists():
        classes.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [need("javac"), "-nowarn", "-encoding", "UTF-8", "-d", str(classes), "-cp", f"{lib}/*", *map(str, sources)],
            check=True,
            timeout=120,
        )
        stamp.touch()
    return f"{classes}:{lib}/*"


def run_java_peer(
    client_version: str,
    serialize: str,
    arguments: Sequence[str],
    *,
    scratch: Path,
    timeout_seconds: float = 120,
    program: str = "interop.Peer",
    properties: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Runs a program of ours with Apache's client and header encoding JSON or ROCKETMQ; its output is in the result.

    `properties` are `name=value` of Java's system properties.
    """
    command = [
        need("java"), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m", *JAVA_OPENS,
        f"-Drocketmq.serialize.type={serialize}", f"-Duser.home={scratch}", f"-Drocketmq.client.logRoot={scratch}",
        *(f"-D{text}" for text in properties),
        "-cp", java_peer_class_path(client_version), program, *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)


def node_modules() -> Path:
    """A folder with the npm packages of `node/package.json`, fetched once."""
    folder = cache_folder() / "node"
    folder.mkdir(exist_ok=True)
    wanted = (HERE / "node" / "package.json").read_bytes()
    installed = folder / "package.json"
    if not (folder / "node_modules").exists() or not installed.exists() or installed.read_bytes() != wanted:
        shutil.copy(HERE / "node" / "package.json", installed)
        words = [need("npm"), "install", "--no-audit", "--no-fund", "--omit=optional", "--no-package-lock"]
        subprocess.run(words, cwd=folder, check=True, timeout=300)
    return folder / "node_modules"


def go_peer() -> Path:
    """The program of `go/`, on Apache's Go client, built once; its modules come from Go's proxy."""
    folder = cache_folder() / "go-peer"
    program = folder / "peer"
    sources = [HERE / "go" / name for name in ("go.mod", "go.sum", "peer.go", "requests.go")]
    kept = [folder / source.name for source in sources]
    if not program.exists() or any(
        not copy.exists() or copy.read_bytes() != source.read_bytes()
        for copy, source in zip(kept, sources, strict=True)
    ):
        folder.mkdir(exist_ok=True)
        program.unlink(missing_ok=True)
        for source in sources:
            shutil.copy(source, folder)
        subprocess.run([need("go"), "build", "-o", str(program), "."], cwd=folder, check=True, timeout=600)
    return program


def free_ports(count: int) -> list[int]:
    """`count` free loopback ports, each with the two below (fast port) and the one above (HA) free as well."""
    found: list[int] = []
    while len(found) < count:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        try:
            for offset in (-2, -1, 0, 1):
                socket.create_server(("127.0.0.1", port + offset)).close()
        except OSError:
            continue
        if all(abs(port - other) > 4 for other in found):
            found.append(port)
    return found


@dataclass
class Server:
    """A running server process: its address, and its output so far in `log`."""

    name: str
    address: str
    process: subprocess.Popen[str]
    log: Path

    def kill(self) -> None:
        """SIGKILL, and waits until the process is gone."""
        self.process.kill()
        self.process.wait(timeout=30)

    def stop(self) -> int:
        """SIGTERM, and waits for an orderly end; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise PeerError(f"{self.name} did not stop within 30 s of SIGTERM; log: {self.log}") from None


def _await_line(process: subprocess.Popen[str], log: Path, pattern: str, timeout_seconds: float) -> None:
    """Copies the process's output to `log` (for as long as it runs) and returns once a line matches `pattern`."""
    seen = threading.Event()

    def copy() -> None:
        assert process.stdout is not None
        with log.open("w") as out, process.stdout:
            for line in process.stdout:
                out.write(line)
                out.flush()
                if re.search(pattern, line):
                    seen.set()

    threading.Thread(target=copy, daemon=True).start()
    if not seen.wait(timeout_seconds):
        process.kill()
        raise PeerError(f"no line like {pattern!r} within {timeout_seconds} s:\n{log.read_text()[-3000:]}")


@contextmanager
def _apache(
    name: str, main_class: str, heap_mb: int, configuration: str, address: str, scratch: Path, version: str
) -> Iterator[Server]:
    other = () if version == APACHE_SERVER else (f"-Dserver.version={version}",)
    lib = jars(JAVA_IT, "pom-server.xml", *other)
    home = scratch / name
    (home / "conf").mkdir(parents=True, exist_ok=True)
    for kind in ("namesrv", "broker"):
        (home / "conf" / f"logback_{kind}.xml").write_text(LOGBACK)
    (home / "server.conf").write_text(configuration)
    process = subprocess.Popen(
        [
            need("java"), *JAVA_OPENS, "-XX:+UseSerialGC", "-Xms64m", f"-Xmx{heap_mb}m",
            "-XX:MaxDirectMemorySize=256m",
            f"-Duser.home={home}", f"-Drocketmq.client.logRoot={home}", "-cp", f"{lib}/*", main_class, "-c",
            str(home / "server.conf"),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "ROCKETMQ_HOME": str(home)},
    )  # fmt: skip
    server = Server(name, address, process, home / "out.log")
    try:
        _await_line(process, server.log, "boot success", 60)
        yield server
    finally:
        server.stop()


def _await_registered(broker: Server, name: str, namesrv: str, timeout_seconds: float) -> None:
    """Returns once each of the name servers knows the broker: Apache's says that it is up some time before.

    Asks for the topic that has the broker's own name.
    """
    deadline = time.monotonic() + timeout_seconds
    ask = Command(RequestCode.GET_ROUTEINFO_BY_TOPIC, header=GetRouteInfoRequestHeader(topic=name))
    for address in namesrv.split(";"):
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout_seconds) as connection:
            while _answer(connection, ask).code != ResponseCode.SUCCESS:
                if time.monotonic() > deadline:
                    said = broker.log.read_text()[-3000:]
                    raise PeerError(f"{address} did not know {name} within {timeout_seconds} s:\n{said}")
                time.sleep(0.1)


def _answer(connection: socket.socket, request: Command) -> Command:
    connection.sendall(encode_frame(request))
    splitter = FrameSplitter()
    while not (commands := splitter.feed(connection.recv(65536))):
        pass
    return commands[0]


@contextmanager
def apache_name_server(scratch: Path, *, version: str = APACHE_SERVER) -> Iterator[Server]:
    """Apache's name server on a free port."""
    (port,) = free_ports(1)
    main = "org.apache.rocketmq.namesrv.NamesrvStartup"
    with _apache("apache-namesrv", main, 160, f"listenPort={port}\n", f"127.0.0.1:{port}", scratch, version) as server:
        yield server


@contextmanager
def apache_broker(
    scratch: Path,
    namesrv: str,
    *,
    name: str = "broker-a",
    store: Path | None = None,
    version: str = APACHE_SERVER,
    **keys: object,
) -> Iterator[Server]:
    """Apache's broker, small files, registered at `namesrv`; `keys` are configuration keys."""
    (port,) = free_ports(1)
    store = store or scratch / f"apache-store-{name}"
    configuration = f"""brokerClusterName={CLUSTER}
brokerName={name}
brokerId=0
brokerIP1=127.0.0.1
brokerIP2=127.0.0.1
listenPort={port}
haListenPort={port + 1}
namesrvAddr={namesrv}
storePathRootDir={store}
storePathCommitLog={store}/commitlog
enablePropertyFilter=true
mappedFileSizeCommitLog=104857600
maxIndexNum=1000
maxHashSlotNum=4000
waitTimeMillsInSendQueue=5000
osPageCacheBusyTimeOutMills=5000
diskMaxUsedSpaceRatio=95
"""
    configuration += "".join(f"{key}={value}\n" for key, value in keys.items())  # the last one of a key counts
    main = "org.apache.rocketmq.broker.BrokerStartup"
    with _apache(f"apache-{name}", main, 512, configuration, f"127.0.0.1:{port}", scratch, version) as server:
        _await_registered(server, name, namesrv, 60)
        yield server


@contextmanager
def _ours(name: str, arguments: Sequence[str], address: str, scratch: Path) -> Iterator[Server]:
    scratch.mkdir(parents=True, exist_ok=True)
    log = scratch / f"{name}.log"
    ready_path = scratch / f"{name}.ready"
    ready_path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log.open("a") as out:
        ready.bind(str(ready_path))
        ready.settimeout(20)
        process = subprocess.Popen(
            [sys.executable, "-m", "trio_rmq.cli.main", *arguments],
            stdout=out, stderr=subprocess.STDOUT, text=True, env={**os.environ, "NOTIFY_SOCKET": str(ready_path)},
        )  # fmt: skip
        server = Server(name, address, process, log)
        try:
            try:
                while b"READY=1" not in ready.recv(4096):
                    pass
            except TimeoutError:
                process.kill()
                raise PeerError(f"{name} was not ready within 20 s:\n{log.read_text()[-3000:]}") from None
            yield server
        finally:
            server.stop()


@contextmanager
def our_name_server(scratch: Path, *, port: int | None = None) -> Iterator[Server]:
    """Our name server as a process of its own, ready."""
    port = port or free_ports(1)[0]
    arguments = ["namesrv", f"listenPort={port}", f"kvConfigPath={scratch}/kvConfig-{port}.json"]
    with _ours("namesrv", arguments, f"127.0.0.1:{port}", scratch) as server:
        yield server


@contextmanager
def our_broker(
    scratch: Path,
    namesrv: str,
    *,
    name: str = "broker-a",
    port: int | None = None,
    store: Path | None = None,
    **keys: object,
) -> Iterator[Server]:
    """Our broker as a process of its own, registered at `namesrv` and ready; `keys` are configuration keys."""
    port = port or free_ports(1)[0]
    arguments = [
        "broker", "-n", namesrv, f"brokerClusterName={CLUSTER}", f"brokerName={name}", "brokerIP1=127.0.0.1",
        f"listenPort={port}", f"storePathRootDir={store or scratch / f'store-{name}'}",
        *(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in keys.items()),
    ]  # fmt: skip
    with _ours(name, arguments, f"127.0.0.1:{port}", scratch) as server:
        yield server
