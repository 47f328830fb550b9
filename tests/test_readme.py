"""The README is true: its programs run, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.cli.processes import WAIT_SECONDS, environment, free_ports, running, trio_rmq

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS_OF_COMMANDS = ("group", "store", "topic")
"""What follows these is one command or another, with `|` between."""


def test_links_lead_to_files() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_commands_have_the_options_shown() -> None:
    for line in re.findall(r"^    trio-rmq (.+)$", README, re.MULTILINE):
        command, rest = line.split(maxsplit=1)
        alternatives = [part.split() for part in rest.split(" | ")] if command in COMMANDS_OF_COMMANDS else []
        for words in [[command, *words] for words in alternatives] or [[command]]:
            shown = trio_rmq(*words[: 2 if alternatives else 1], "--help").stdout.decode()
            for option in re.findall(r"--?[a-z][a-z-]*", " ".join(words) if alternatives else rest):
                assert option in shown, f"{' '.join(words)} has no {option}"


def test_producer_and_consumer_run_as_printed(tmp_path: Path) -> None:
    producer, consumer = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    port, namesrv_port = free_ports(2)
    words = ("standalone", "--store", str(tmp_path / "s"), "--port", str(port), "--namesrv-port", str(namesrv_port))

    def here(program: str) -> list[str]:
        assert "127.0.0.1:9876" in program
        return [sys.executable, "-u", "-c", program.replace("127.0.0.1:9876", f"127.0.0.1:{namesrv_port}")]

    with running(tmp_path, *words):
        sent = subprocess.run(
            here(producer), capture_output=True, text=True, timeout=WAIT_SECONDS, env=environment(), check=False
        )
        assert sent.returncode == 0, sent.stderr
        assert "SEND_OK" in sent.stdout
        reading = subprocess.Popen(here(consumer), stdout=subprocess.PIPE, text=True, env=environment())
        with reading:
            assert reading.stdout is not None
            assert reading.stdout.readline() == "b'hello'\n"
            reading.kill()
