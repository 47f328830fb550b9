"""The rooms of the house and who may enter which: an import that climbs, or crosses to a neighbour, fails here.

Every import counts: at the top of a file, inside a function, and under TYPE_CHECKING, because a type that is needed is
knowledge too.  The table is the one in ARCHITECTURE.md; from the ground up, a room imports only what stands in its row.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "trio_rmq"

GROUND = {"errors", "limits", "clock", "randomness", "config", "config_keys", "settings", "shares"}
SERVER_HALF, CLIENT_HALF = "remoting", "remoting (client half)"
CLIENT_HALF_FILES = {
    "address",
    "client",
    "connection",
    "direct_socket",
    "http_get",
    "name_server_list",
    "outgoing",
    "request_table",
    "thread_connection",
    "tls_context",
    "ws_client",
}
"""The modules of remoting that a client needs; they run on Trio and on asyncio."""

INSIDE: dict[str, set[str]] = {
    "ground": set(),
    "supervision": {"ground"},
    "wire": {"ground"},
    "filter": {"ground", "wire"},
    "store": {"ground", "supervision", "wire"},
    CLIENT_HALF: {"ground", "wire"},
    SERVER_HALF: {"ground", "wire", CLIENT_HALF},
    "namesrv": {"ground", "supervision", "wire", SERVER_HALF, CLIENT_HALF},
    "replication": {"ground", "supervision", "wire", "store", SERVER_HALF, CLIENT_HALF},
    "broker": {"ground", "supervision", "wire", "filter", "store", SERVER_HALF, CLIENT_HALF, "replication"},
    "client": {"ground", "wire", CLIENT_HALF},
    "admin": {"ground", "wire", CLIENT_HALF, "client", "store"},
    "console": {"ground", "wire", CLIENT_HALF, "client", "admin"},
    "standalone": {
        "ground",
        "supervision",
        "wire",
        "store",
        SERVER_HALF,
        CLIENT_HALF,
        "namesrv",
        "replication",
        "broker",
    },
}
EVERYTHING = {*INSIDE}
INSIDE["cli"] = EVERYTHING
INSIDE["testing"] = EVERYTHING | {"cli"}
for room, allowed in INSIDE.items():
    allowed.add(room)

OUTSIDE: dict[str, set[str]] = {
    "ground": {"msgspec"},
    "supervision": {"trio"},
    "wire": {"msgspec", "cbor2", "isal"},
    "filter": {"msgspec"},
    "store": {"msgspec", "trio"},
    CLIENT_HALF: {"msgspec", "anyio", "h11", "wsproto"},
    SERVER_HALF: {"msgspec", "trio", "trio_websocket", "wsproto", "cryptography"},
    "namesrv": {"msgspec", "trio"},
    "replication": {"msgspec", "trio"},
    "broker": {"msgspec", "trio"},
    "client": {"msgspec", "anyio", "lz4", "zstandard"},
    "admin": {"msgspec", "anyio"},
    "console": {"msgspec", "trio", "starlette", "hypercorn", "prometheus_client"},
    "standalone": {"msgspec", "trio"},
    "cli": {"msgspec", "trio", "anyio", "typer", "rich", "click"},
    "testing": {"msgspec", "trio", "anyio", "wsproto", "trio_websocket", "hypothesis", "pytest", "typing_extensions"},
}

ALLOWED: dict[tuple[str, str], str] = {
    ("trio_rmq/namesrv/server.py", "trio_rmq.store.json_files"): "config files of both servers are written one way",
    ("trio_rmq/namesrv/server.py", "trio_rmq.store.disk"): "what those files are written with",
}
"""(file, imported module) -> why this one import may break its row."""

BY_WISH: dict[tuple[str, str], str] = {
    ("trio_rmq/cli/chaos.py", "trio_rmq.testing.chaos.front"): "`chaos run` is testing; loaded when it is called",
    ("trio_rmq/cli/main.py", "trio_rmq.testing.serving"): "`testing serve` is testing; it gets its words as they are",
}
"""The same for commands that are testing themselves: imported inside a function, so that no other command has it."""
ALLOWED.update(BY_WISH)


def modules() -> Iterator[tuple[str, Path]]:
    """(module name, file) of every module of the package."""
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def room_of(module: str) -> str | None:
    """The room a module stands in; None for the package itself."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    if parts[1] in GROUND:
        return "ground"
    if parts[1] == "remoting" and len(parts) > 2 and parts[2] in CLIENT_HALF_FILES:
        return CLIENT_HALF
    return parts[1]


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports, by full name; names imported from a package count as modules when they are."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room; write trio_rmq.<room>"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found


def test_every_module_stands_in_a_known_room() -> None:
    rooms = {room_of(module) for module in MODULES} - {None}
    assert rooms <= set(INSIDE), "a new room needs its rows in INSIDE and OUTSIDE, and in ARCHITECTURE.md"


@pytest.mark.parametrize("module", MODULES)
def test_imports_stay_in_their_row(module: str) -> None:
    path = MODULES[module]
    room = room_of(module)
    where = str(path.relative_to(ROOT))
    wrong = []
    for target in sorted(imports(path)):
        if (where, target) in ALLOWED:
            continue
        top = target.split(".")[0]
        if top == PACKAGE:
            entered = room_of(target)
            if entered is not None and (room is None or entered not in INSIDE[room]):
                wrong.append(f"{target} (room {entered})")
        elif top not in sys.stdlib_module_names and (room is None or top not in OUTSIDE[room]):
            wrong.append(target)
    assert not wrong, f"{where} stands in {room} and must not import {', '.join(wrong)}"


def test_no_exemption_is_left_over() -> None:
    unused = {(file, target) for file, target in ALLOWED if target not in imports(ROOT / file)}
    assert not unused


def test_testing_is_loaded_by_wish_only() -> None:
    for where, target in BY_WISH:
        tree = ast.parse((ROOT / where).read_text())
        at_once = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any(f"{PACKAGE}.testing" in ast.unparse(node) for node in at_once), (
            f"{where} imports {target} at once"
        )


def closure(start: str) -> set[str]:
    """All modules that importing `start` brings in, packages' own modules included; TYPE_CHECKING imports count."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if module in MODULES:
            where = str(MODULES[module].relative_to(ROOT))
            waiting.extend(target for target in imports(MODULES[module]) if (where, target) not in BY_WISH)
            waiting.extend(".".join(module.split(".")[:depth]) for depth in range(1, module.count(".") + 1))
    return seen


def test_the_client_never_brings_in_trio() -> None:
    """Under asyncio no line of Trio may be needed; anyio picks its backend by itself."""
    for module in MODULES:
        if room_of(module) in ("client", CLIENT_HALF, "wire", "ground"):
            assert not [name for name in closure(module) if name.split(".")[0] in ("trio", "trio_websocket")], module


def test_nothing_brings_in_testing() -> None:
    for module in MODULES:
        if room_of(module) != "testing":
            assert not [name for name in closure(module) if name.startswith(f"{PACKAGE}.testing")], module


def test_name_server_broker_and_client_meet_in_bytes_only() -> None:
    for room in ("namesrv", "broker", "client"):
        others = {f"{PACKAGE}.{other}" for other in ("namesrv", "broker", "client") if other != room}
        for module in MODULES:
            if room_of(module) == room:
                assert not [name for name in closure(module) if ".".join(name.split(".")[:2]) in others], module
