"""Runs AdminPeer: Apache's mqadmin, one process for many sub-commands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.interop.peers import cache_folder, jars, need
from trio_rmq.testing.apache_java import JAVA_OPENS, LOGBACK

FOLDER = Path(__file__).parent / "java" / "admin"
VERSIONS = ("4.9.8", "5.3.3")


def class_path(version: str) -> str:
    """The class path of AdminPeer on Apache's tools of that version; compiled on first use."""
    lib = jars(FOLDER, "pom.xml", f"-Dtools.version={version}")
    source = FOLDER / "src" / "interop" / "AdminPeer.java"
    classes = cache_folder() / f"admin-peer-{version}"
    stamp = classes / "built"
    if not stamp.exists() or stamp.stat().st_mtime < source.stat().st_mtime:
        classes.mkdir(parents=True, exist_ok=True)
        command = [need("javac"), "-nowarn", "-encoding", "UTF-8", "-d", str(classes), "-cp", f"{lib}/*", str(source)]
        subprocess.run(command, check=True, timeout=120)
        stamp.touch()
    return f"{classes}:{lib}/*"


def mqadmin(version: str, name_server: str, commands: Sequence[Sequence[str]], scratch: Path) -> list[str]:
    """What each sub-command of mqadmin prints, errors included; `-n` is added.  `scratch` takes what Apache logs."""
    (scratch / "conf").mkdir(parents=True, exist_ok=True)
    for name in ("logback_tools.xml", "rmq.tools.logback.xml"):
        (scratch / "conf" / name).write_text(LOGBACK.replace("WARN", "OFF"))
    command = [
        need("java"), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m", *JAVA_OPENS, f"-Duser.home={scratch}",
        f"-Drocketmq.client.logRoot={scratch}", "-cp", class_path(version), "interop.AdminPeer",
    ]  # fmt: skip
    text = "".join("\t".join([*words, "-n", name_server]) + "\n" for words in commands)
    done = subprocess.run(
        command, input=text.encode(), capture_output=True, timeout=300, check=False,
        env={**os.environ, "ROCKETMQ_HOME": str(scratch)}, cwd=scratch,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()[-3000:] + done.stderr.decode()[-3000:]
    outputs = done.stdout.decode().split("\n\0")[1:]
    assert len(outputs) == len(commands), f"{len(outputs)} answers for {len(commands)} commands: {outputs[-1:]}"
    return [output.partition("\n")[2].strip("\n") for output in outputs]
