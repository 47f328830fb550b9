"""How to start the servers of a system under test: ours as chaos nodes, Apache's as Java processes, or your own.

A `System` makes command lines and knows which faults it can be given; the cluster does the rest.  What a system cannot
be given is said before a run, never left out silently.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trio_rmq.errors import ConfigError
from trio_rmq.testing.apache_java import JAVA_OPENS, LOGBACK

CLUSTER = "DefaultCluster"
DISK_FAULTS = frozenset({"disk_error", "slow_disk", "short_write", "power", "step_clock"})
"""Faults that need our own disk or clock in the process."""


@dataclass
class Launch:
    """A server to start: command line, environment, and the regular expression of the line that says it is ready."""

    words: list[str]
    ready: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Place:
    """What a server is given: a name, a folder of its own, a store folder, a port of 127.0.0.1, and settings."""

    name: str
    folder: str
    store: str
    port: int
    settings: dict[str, str]
    orders: str
    """The file of `orders`."""
    journal: str
    """The folder of `unsynced`, or empty."""


class System(Protocol):
    """A pluggable system under test."""

    name: str
    start_seconds: float
    """Longest start of one server."""

    def cannot(self, fault: str) -> str | None:
        """Why the fault of this name cannot be given to this system; None when it can."""

    def name_server(self, place: Place) -> Launch:
        """How to start a name server."""

    def broker(self, place: Place, name_servers: str) -> Launch:
        """How to start a broker that registers at `name_servers`, `host:port` separated by `;`."""


class OurSystem:
    """trio-rmq, by `python`: another interpreter, or one of an environment with another version, is an upgrade.

    Without `chaos` the servers are started as users start them, and faults of disk and clock are not possible: needed
    for versions that have no `testing.chaos.node`.
    """

    name = "trio-rmq"
    start_seconds = 20.0

    def __init__(self, python: str = sys.executable, *, chaos: bool = True) -> None:
        self.python = python
        self.chaos = chaos

    def cannot(self, fault: str) -> str | None:
        """Only without the chaos node anything is impossible."""
        if fault in DISK_FAULTS and not self.chaos:
            return "it is started without the chaos node"
        return None

    def _launch(self, place: Place, *words: str) -> Launch:
        if self.chaos:
            begin = [self.python, "-m", "trio_rmq.testing.chaos.node", place.orders, place.journal or "-"]
        else:
            begin = [self.python, "-m", "trio_rmq.cli.main"]
        settings = [f"{key}={value}" for key, value in place.settings.items()]
        return Launch([*begin, *words, *settings], r"^ready\b")

    def name_server(self, place: Place) -> Launch:
        """Our name server."""
        return self._launch(
            place, "namesrv", f"listenPort={place.port}", "bindAddress=127.0.0.1",
            f"kvConfigPath={place.store}/kvConfig.json",
        )  # fmt: skip

    def broker(self, place: Place, name_servers: str) -> Launch:
        """Our broker."""
        return self._launch(
            place, "broker", "-n", name_servers, f"brokerClusterName={CLUSTER}", f"brokerName={place.name}",
            "bindAddress=127.0.0.1", "brokerIP1=127.0.0.1", f"listenPort={place.port}", "fastPortEnable=false",
            f"storePathRootDir={place.store}",
        )  # fmt: skip


class ApacheSystem:
    """Apache RocketMQ's servers, from a folder with their jars (`tests/interop/java-it` fetches one); needs Java.

    Its disk calls and its clock are the machine's: faults in them are not possible without root tools for the JVM.
    """

    start_seconds = 60.0

    def __init__(self, jars: str, *, java: str = "java") -> None:
        found = sorted(Path(jars).glob("rocketmq-broker-*.jar"))
        if not found:
            raise ConfigError(f"{jars} has no rocketmq-broker-*.jar: give the folder with Apache's server jars")
        if shutil.which(java) is None:
            raise ConfigError(f"{java} is not installed: Apache's servers need Java")
        self.name = f"Apache {found[-1].stem.removeprefix('rocketmq-broker-')}"
        self._jars = jars
        self._java = java

    def cannot(self, fault: str) -> str | None:
        """Faults inside the process are not for a JVM."""
        if fault in DISK_FAULTS:
            return "a JVM's system calls and clock are not in our hands"
        return None

    def _launch(self, place: Place, main_class: str, heap_mb: int, settings: dict[str, str]) -> Launch:
        home = Path(place.folder)
        (home / "conf").mkdir(parents=True, exist_ok=True)
        for kind in ("namesrv", "broker"):
            (home / "conf" / f"logback_{kind}.xml").write_text(LOGBACK)
        (home / "server.conf").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        words = [
            self._java, *JAVA_OPENS, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xms64m", f"-Xmx{heap_mb}m",
            "-XX:MaxDirectMemorySize=256m", f"-Duser.home={home}", f"-Drocketmq.client.logRoot={home}",
            "-cp", f"{self._jars}/*", main_class, "-c", str(home / "server.conf"),
        ]  # fmt: skip
        return Launch(words, "boot success", {**os.environ, "ROCKETMQ_HOME": str(home)})

    def name_server(self, place: Place) -> Launch:
        """Apache's name server."""
        settings = {"listenPort": str(place.port), "kvConfigPath": f"{place.store}/kvConfig.json", **place.settings}
        return self._launch(place, "org.apache.rocketmq.namesrv.NamesrvStartup", 128, settings)

    def broker(self, place: Place, name_servers: str) -> Launch:
        """Apache's broker, with small files."""
        settings = {
            "brokerClusterName": CLUSTER,
            "brokerName": place.name,
            "brokerId": "0",
            "brokerIP1": "127.0.0.1",
            "brokerIP2": "127.0.0.1",
            "listenPort": str(place.port),
            "haListenPort": str(place.port + 1),
            "namesrvAddr": name_servers,
            "storePathRootDir": place.store,
            "storePathCommitLog": f"{place.store}/commitlog",
            "maxIndexNum": "1000",
            "maxHashSlotNum": "4000",
            "waitTimeMillsInSendQueue": "5000",
            "osPageCacheBusyTimeOutMills": "5000",
            "diskMaxUsedSpaceRatio": "95",
            **place.settings,
        }
        return self._launch(place, "org.apache.rocketmq.broker.BrokerStartup", 384, settings)
