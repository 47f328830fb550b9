"""Runs FilterPeer: Apache's SQL92 filter, bloom filter and filter registration, asked line by line."""

from __future__ import annotations

import subprocess
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.interop.peers import cache_folder, jars, need

FOLDER = Path(__file__).parent / "java" / "filter"
VERSIONS = ("5.3.3", "4.9.7")


def class_path(version: str) -> str:
    """The class path of FilterPeer on Apache's jars of that version; compiled on first use."""
    lib = jars(FOLDER, "pom.xml", f"-Dfilter.version={version}")
    source = FOLDER / "src" / "interop" / "FilterPeer.java"
    classes = cache_folder() / f"filter-peer-{version}"
    stamp = classes / "built"
    if not stamp.exists() or stamp.stat().st_mtime < source.stat().st_mtime:
        classes.mkdir(parents=True, exist_ok=True)
        command = [need("javac"), "-nowarn", "-encoding", "UTF-8", "-d", str(classes), "-cp", f"{lib}/*", str(source)]
        subprocess.run(command, check=True, timeout=120)
        stamp.touch()
    return f"{classes}:{lib}/*"


def ask(version: str, mode: str, lines: Sequence[str], scratch: Path) -> bytes:
    """What FilterPeer writes in that mode for these lines; `scratch` takes what Apache logs."""
    command = [
        need("java"), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m", f"-Duser.home={scratch}",
        f"-Drocketmq.client.logRoot={scratch}", "-cp", class_path(version), "interop.FilterPeer", mode,
    ]  # fmt: skip
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return done.stdout


def packed(text: str) -> str:
    """A text as FilterPeer takes it."""
    return b64encode(text.encode()).decode()


def evaluate(version: str, sets: Sequence[Mapping[str, str]], expressions: Sequence[str], scratch: Path) -> list[str]:
    """Apache's answer to each expression: "refused", or for each property set T, F, N (null) or E (failed)."""
    properties = [" ".join(packed(word) for entry in one.items() for word in entry) for one in sets]
    lines = [str(len(sets)), *properties, *map(packed, expressions)]
    return ask(version, "evaluate", lines, scratch).decode("ascii").splitlines()
