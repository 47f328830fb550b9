"""The rules of the house that a reader would otherwise have to remember, each with what to use instead.

Time, randomness, network and disk enter through one door each, or a simulation cannot stand in for them; errors are
caught in one place, or defects hide; nothing polls where an event can wake.  Every exemption names its reason, and one
that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES_MAX = 500
GENERATED = {
    "trio_rmq/wire/codes.py",
    "trio_rmq/wire/headers.py",
    "trio_rmq/config_keys.py",
    "trio_rmq/wire/config_keys.py",
}


class Source:
    """One file of the package, read and parsed."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.tree = ast.parse(text)
        self.nodes = list(ast.walk(self.tree))


Finding = tuple[int, str]
Finder = Callable[[Source], Iterator[Finding]]


@dataclass(frozen=True)
class Rule:
    """A ban: how to find a breach, what to use instead, and which files may break it and why (a `dir/` covers all)."""

    name: str
    find: Finder
    instead: str
    allowed: dict[str, str]


def imported(*banned: str) -> Finder:
    """Finds imports of these modules, their submodules, and single names written `module.name`."""

    def find(source: Source) -> Iterator[Finding]:
        for node in source.nodes:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                if any(name == ban or name.startswith(f"{ban}.") for ban in banned):
                    yield node.lineno, f"imports {name}"

    return find


def named(pattern: str) -> Finder:
    """Finds dotted names (`trio.to_thread.run_sync`) that match a whole regular expression, calls or not."""
    whole = re.compile(pattern)

    def find(source: Source) -> Iterator[Finding]:
        for node in source.nodes:
            if isinstance(node, ast.Attribute | ast.Name):
                name = dotted(node)
                if whole.fullmatch(name):
                    yield node.lineno, f"uses {name}"

    return find


def dotted(node: ast.expr) -> str:
    """`a.b.c` of nested attributes; what stands before them, when it is no name, counts as nothing."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    parts.append(node.id if isinstance(node, ast.Name) else "")
    return ".".join(reversed(parts))


def called(*names: str) -> Finder:
    """Finds calls of these plain names."""

    def find(source: Source) -> Iterator[Finding]:
        for node in source.nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield node.lineno, f"calls {node.func.id}()"

    return find


def both(*finders: Finder) -> Finder:
    def find(source: Source) -> Iterator[Finding]:
        for finder in finders:
            yield from finder(source)

    return find


def caught_names(handler: ast.ExceptHandler) -> list[str]:
    if handler.type is None:
        return [""]
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return [ast.unparse(kind).rpartition(".")[2] for kind in kinds]


def raises_again(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise)


def broad_handlers(source: Source) -> Iterator[Finding]:
    """`except:` and `except Exception`, wherever they stand; `except BaseException` unless it ends in a raise."""
    for node in source.nodes:
        if isinstance(node, ast.ExceptHandler):
            names = caught_names(node)
            if "" in names or "Exception" in names or ("BaseException" in names and not raises_again(node)):
                yield node.lineno, f"catches {', '.join(names) or 'everything'}"


def swallowed_cancels(source: Source) -> Iterator[Finding]:
    """A cancellation that is caught and does not go on its way."""
    for node in source.nodes:
        if isinstance(node, ast.ExceptHandler):
            names = " ".join(caught_names(node))
            if ("Cancelled" in names or "get_cancelled_exc_class" in names) and not raises_again(node):
                yield node.lineno, "catches a cancellation and keeps it"


def missing_docstrings(source: Source) -> Iterator[Finding]:
    """Modules, and public classes, functions and methods; what a base class documents need not be said again."""
    if source.tree.body and ast.get_docstring(source.tree) is None:
        yield 1, "the module has no docstring"

    def visit(body: list[ast.stmt], owner: ast.ClassDef | None) -> Iterator[Finding]:
        bases = [ast.unparse(base).rpartition(".")[2] for base in owner.bases] if owner is not None else []
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            said_elsewhere = any(node.name in DOCUMENTED.get(base, ()) for base in bases) or any(
                dotted(decorator).endswith(("overload", "setter")) for decorator in node.decorator_list
            )
            if ast.get_docstring(node) is None and not said_elsewhere:
                yield node.lineno, f"{owner.name + '.' if owner else ''}{node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, node)

    yield from visit(source.tree.body, None)


def too_long(source: Source) -> Iterator[Finding]:
    lines = source.text.count("\n")
    if lines > FILE_LINES_MAX and source.name not in GENERATED:
        yield lines, f"has {lines} lines"


def comments(source: Source) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def bare_exemptions(source: Source) -> Iterator[Finding]:
    """`noqa` and `type: ignore` without a code or without a reason behind it."""
    if source.name in GENERATED:
        return
    for line, comment in comments(source):
        if re.search(r"#\s*(noqa|type:\s*ignore)", comment) and not re.search(
            r"#\s*(noqa:\s*[A-Z0-9, ]+|type:\s*ignore\[[a-z, -]+\])\s*[-#]\s*\w.*\s\w", comment
        ):
            yield line, f"no reason in {comment!r}"


def unfinished(source: Source) -> Iterator[Finding]:
    for line, comment in comments(source):
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", comment):
            yield line, f"{comment!r}"
    for node in source.nodes:
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc):
            yield node.lineno, "raises NotImplementedError"


TESTING = "trio_rmq/testing/"
CLI = "trio_rmq/cli/"

RULES = [
    Rule(
        "wall clock and timers",
        both(
            imported("time", "sched", "timeit"),
            named(r"(datetime\.)*(datetime|date)\.(now|utcnow|today)|.*\.(time_ns|perf_counter|monotonic)"),
        ),
        "clock.wall_ms() for the wall clock; trio.current_time() or anyio.current_time() for durations",
        {
            "trio_rmq/clock.py": "the one door of the wall clock",
            "trio_rmq/cli/host.py": "tells how long the process took to get ready, which began before any loop ran",
            "trio_rmq/remoting/thread_connection.py": "a thread without a loop has no loop's clock",
            "trio_rmq/testing/chaos/node.py": "steps the clock of a real process from the machine's",
            "trio_rmq/testing/chaos/chaos_disk.py": "a slow disk blocks the thread that calls it",
        },
    ),
    Rule(
        "randomness",
        both(imported("random", "uuid", "secrets"), named(r"os\.(urandom|getrandom)")),
        "randomness.rng()",
        {
            "trio_rmq/randomness.py": "the one door of randomness",
            "trio_rmq/testing/virtual_network.py": "takes a seeded generator as an argument",
            "trio_rmq/testing/faulty_disk.py": "takes a seeded generator as an argument",
            "trio_rmq/testing/world.py": "makes the seeded generators",
            "trio_rmq/testing/bit_flips.py": "makes its store from a seed",
            "trio_rmq/testing/crash_points.py": "makes its scenario from a seed",
            "trio_rmq/testing/simulation/": "makes its plans and faults from a seed",
            "trio_rmq/testing/chaos/": "makes its plans and faults from a seed",
        },
    ),
    Rule(
        "sockets",
        imported("socket", "ssl", "select", "selectors", "socketserver"),
        "trio.socket or trio's streams in servers, anyio's in clients: a virtual network stands behind both",
        {
            "trio_rmq/testing/virtual_network.py": "type names for the signatures of trio's hooks",
            "trio_rmq/testing/virtual_socket.py": "type names for the signatures of trio's hooks",
            "trio_rmq/remoting/tls.py": "TLS contexts, which only compute; its bytes go over trio's streams",
            "trio_rmq/remoting/tls_context.py": "TLS contexts, which only compute; no connection is made",
            "trio_rmq/remoting/plain_socket.py": "the system's socket out of trio's, where there is one",
            "trio_rmq/remoting/direct_socket.py": "the system's socket out of anyio's stream, where there is one",
            "trio_rmq/remoting/thread_connection.py": "a thread without a loop: calls that block are what it is for",
            "trio_rmq/remoting/client.py": "the TLS errors that anyio lets through",
            "trio_rmq/cli/host.py": "finds this machine's address and speaks to systemd's notify socket",
            "trio_rmq/testing/chaos/sources.py": "binds a client's socket before trio gets it",
        },
    ),
    Rule(
        "files",
        both(
            imported("os", "pathlib", "shutil", "tempfile", "glob", "fcntl", "mmap", "fileinput"),
            called("open"),
            named(r"(trio|anyio)\.(open_file|Path|wrap_file)|io\.open"),
        ),
        "store/disk.py, which a faulty twin can replace; store/json_files.py for tables",
        {
            "trio_rmq/store/disk.py": "the one door of the disk",
            "trio_rmq/config.py": "reads the configuration file once, before anything is served",
            "trio_rmq/client/instance.py": "NAMESRV_ADDR and the process id, as Java's client takes them; no file",
            "trio_rmq/client/offset_store.py": "a broadcasting consumer's offsets lie in a file of the user's",
            "trio_rmq/remoting/tls.py": "certificates, which the ssl module itself reads by their names",
            "trio_rmq/remoting/address.py": "os.strerror: words for an error number, no input or output",
            CLI: "the process's own edge: arguments, files named there, environment, signals",
            TESTING: "os.strerror in the virtual network; error numbers and flags in the faulty disk",
        },
    ),
    Rule(
        "threads and other loops",
        both(
            imported("threading", "asyncio", "concurrent", "multiprocessing", "queue", "_thread", "anyio.from_thread"),
            named(r"(trio|anyio)\.(to_thread|from_thread)(\..*)?|.*spawn_system_task"),
        ),
        "a task in a nursery; a thread only where the system offers nothing else than a blocking call",
        {
            "trio_rmq/remoting/direct_socket.py": "type names: the loop is asyncio's own, when a client runs on it",
            "trio_rmq/store/disk.py": "fdatasync and large copies block",
            "trio_rmq/client/offset_store.py": "replacing and syncing the file of local offsets blocks",
            "trio_rmq/client/listening.py": "a blocking listener is the user's wish",
            "trio_rmq/client/blocking/portal.py": "a program without an event loop gets one in a thread",
            "trio_rmq/cli/serve.py": "loading modules blocks",
            "trio_rmq/cli/parts.py": "reading a pipe blocks, and a regular file cannot be waited for",
            "trio_rmq/testing/chaos/orders.py": "a lock: the disk's calls come from the loop and from its threads",
            "trio_rmq/testing/chaos/unsynced.py": "a lock: the disk's calls come from the loop and from its threads",
            "trio_rmq/testing/threaded.py": "a broker for tests without Trio has a loop, and so a thread, of its own",
        },
    ),
    Rule(
        "processes and code from data",
        both(
            imported("subprocess", "pickle", "marshal", "shelve", "ctypes", "importlib", "runpy", "code", "dbm"),
            called("eval", "exec", "compile", "__import__", "breakpoint"),
            named(
                r"(trio|anyio)\.(run_process|open_process|lowlevel\.open_process)|os\.(system|popen|exec.*|spawn.*|fork)"
            ),
        ),
        "nothing: a server runs no program and no code that came as data",
        {
            "trio_rmq/cli/host.py": "ctypes: one call of the C library, which sets how much freed memory it keeps",
            "trio_rmq/testing/chaos/cluster.py": "starts the servers under test, by command lines made here",
            "trio_rmq/store/disk.py": "ctypes: sync_file_range of the C library, which Python does not offer",
            "trio_rmq/testing/chaos/small_disk.py": "ctypes: mount and umount, which Python does not offer",
            "trio_rmq/cli/supervisor.py": "runs this same command once a broker, with words it made itself",
        },
    ),
    Rule(
        "printing",
        both(called("print", "input"), named(r"sys\.(stdout|stderr|stdin)(\..*)?")),
        "logging, one line an event; the command line prints",
        {
            CLI: "prints for the user",
            "trio_rmq/testing/serving.py": "says where it is to the program that started it",
        },
    ),
    Rule(
        "identity as a value",
        called("id"),
        "a running number: id() differs from run to run, so nothing may be ordered or named by it",
        {"trio_rmq/testing/faulty_disk.py": "files with two names are looked up by it, never ordered"},
    ),
    Rule(
        "sleeping",
        named(r"(trio|anyio)\.(sleep|sleep_until)"),
        "an event, a condition or a deadline: nothing polls where an event can wake",
        {
            "trio_rmq/broker/server.py": "once, after the store failed: senders get their refusals before it ends",
            "trio_rmq/broker/timers.py": "a growing pause after the store refused a message",
            "trio_rmq/broker/delay.py": "until a level's next message is due; before a save; a pause when refused",
            "trio_rmq/broker/members.py": "until the first client can have expired; an event when there is none",
            "trio_rmq/broker/stats.py": "between samples: rates need a look at fixed times",
            "trio_rmq/broker/registration.py": "between questions to an address server, which tells nobody of a change",
            "trio_rmq/namesrv/liveness.py": "until the first broker can have expired; an event when there is none",
            "trio_rmq/remoting/listener.py": "until the first connection can be idle; and when out of file handles",
            "trio_rmq/store/flush.py": "asynchronous flush gathers writes for an interval after the first",
            "trio_rmq/store/retention.py": "between deletions of large files: the disk gets time for others",
            "trio_rmq/store/index.py": "gathers the keys of an interval's records after the first",
            "trio_rmq/store/transient_pool.py": "gathers the records of an interval after the first, as the flush does",
            "trio_rmq/client/membership.py": "between a member's heartbeats",
            "trio_rmq/client/lite_pull_consumer.py": "between commits of progress",
            "trio_rmq/client/push_consumer.py": "between commits of progress",
            "trio_rmq/client/push_puller.py": "a growing pause after a failed pull",
            "trio_rmq/client/orderly_consuming.py": "between renewals of the queues' locks",
            "trio_rmq/client/concurrent_consuming.py": "until the first running listener call can be overdue",
            "trio_rmq/client/queue_reader.py": "a growing pause before a failed server is asked again",
            "trio_rmq/cli/supervisor.py": "a growing pause before a broker that died is started again",
            "trio_rmq/client/queue_writer.py": "a growing pause before a failed server is asked again",
            "trio_rmq/testing/faulty_disk.py": "the simulated latency of a sync",
            "trio_rmq/testing/interposing.py": "a test asked for a request to be delayed",
            "trio_rmq/testing/crash_points.py": "lets the background services have their turn, on virtual time",
            "trio_rmq/testing/simulation/": "faults, restarts and their bounds are times, all of them virtual",
            "trio_rmq/testing/chaos/": "faults last for a time; bytes on an edge are late; load has a pace",
        },
    ),
    Rule(
        "catching everything",
        broad_handlers,
        "the errors that can be dealt with here, by name; a defect goes up to the session boundary",
        {
            "trio_rmq/remoting/session.py": "the session boundary: a defect is logged and answered SYSTEM_ERROR",
            "trio_rmq/remoting/connection.py": "the same boundary for a client's handlers of requests from the broker",
            "trio_rmq/client/listening.py": "a listener is the user's: whatever it raises brings its messages back",
            "trio_rmq/client/transaction_producer.py": "a user's function: whatever it raises leaves its end unknown",
            "trio_rmq/client/blocking/portal.py": "the same, called in the thread that sends",
            "trio_rmq/client/auto_batch.py": "an interceptor is the user's: what it raises goes to the batch's senders",
            "trio_rmq/client/concurrent_consuming.py": "the same; its calls are not one by one in a function's try",
            "trio_rmq/testing/threaded.py": "a test's function or broker: what it raises goes to the test's thread",
        },
    ),
    Rule("keeping a cancellation", swallowed_cancels, "a `raise` at the end: cancellations always pass", {}),
    Rule(
        "docstrings",
        missing_docstrings,
        "why it exists, units, promises, errors",
        {},
    ),
    Rule("file length", too_long, f"a split by phase: files stay under {FILE_LINES_MAX} lines", {}),
    Rule("exemptions without a reason", bare_exemptions, "a code and the reason beside it", {}),
    Rule("unfinished work", unfinished, "the work itself, or an open issue", {}),
]


def sources() -> list[Source]:
    """Every file of the package."""
    return [Source(str(path.relative_to(ROOT)), path.read_text()) for path in sorted((ROOT / "trio_rmq").rglob("*.py"))]


SOURCES = sources()
DOCUMENTED: dict[str, set[str]] = {}
"""Class name -> methods with a docstring, over the whole package: what a subclass overrides is said there."""
for _source in SOURCES:
    for _node in _source.nodes:
        if isinstance(_node, ast.ClassDef):
            DOCUMENTED.setdefault(_node.name, set()).update(
                item.name
                for item in _node.body
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(item) is not None
            )


def permit(rule: Rule, name: str) -> str | None:
    """The entry of a rule's exemptions that covers a file."""
    return next(
        (entry for entry in rule.allowed if name == entry or (entry.endswith("/") and name.startswith(entry))), None
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_house_keeps_its_rules(rule: Rule) -> None:
    breaches = [
        f"{source.name}:{line}: {what}"
        for source in SOURCES
        if permit(rule, source.name) is None
        for line, what in rule.find(source)
    ]
    assert not breaches, "\n".join([f"use instead: {rule.instead}", *breaches])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_no_exemption_is_left_over(rule: Rule) -> None:
    needed = {permit(rule, source.name) for source in SOURCES if any(rule.find(source))}
    assert set(rule.allowed) <= needed, "an exemption that nothing needs any more"
    assert all(len(reason.split()) >= 3 for reason in rule.allowed.values())


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("wall clock and timers", "import time"),
        ("wall clock and timers", "from datetime import datetime\ndatetime.now()"),
        ("randomness", "from random import Random"),
        ("randomness", "import os\nos.urandom(4)"),
        ("sockets", "import socket as s"),
        ("files", "def f():\n    from pathlib import Path"),
        ("files", "open('x')"),
        ("files", "import trio\ntrio.open_file('x')"),
        ("threads and other loops", "import trio\ntrio.to_thread.run_sync(f)"),
        ("threads and other loops", "from concurrent.futures import Future"),
        ("processes and code from data", "eval('1')"),
        ("processes and code from data", "import trio\ntrio.run_process([])"),
        ("printing", "print()"),
        ("printing", "import sys\nsys.stderr.write('')"),
        ("identity as a value", "id(1)"),
        ("sleeping", "import anyio\nanyio.sleep(1)"),
        ("catching everything", "try:\n    pass\nexcept:\n    pass"),
        ("catching everything", "try:\n    pass\nexcept (OSError, Exception):\n    raise"),
        ("catching everything", "try:\n    pass\nexcept BaseException:\n    pass"),
        ("keeping a cancellation", "try:\n    pass\nexcept trio.Cancelled:\n    pass"),
        ("keeping a cancellation", "try:\n    pass\nexcept anyio.get_cancelled_exc_class():\n    pass"),
        ("docstrings", "x = 1"),
        ("docstrings", '"""D."""\nclass A:\n    """D."""\n    def method(self): ...'),
        ("file length", "\n" * 501),
        ("exemptions without a reason", "x = 1  # noqa: E501"),
        ("exemptions without a reason", "x = 1  # type: ignore[misc]"),
        ("unfinished work", "# TODO later"),
        ("unfinished work", "raise NotImplementedError"),
    ],
)
def test_a_breach_is_found(name: str, code: str) -> None:
    (rule,) = [rule for rule in RULES if rule.name == name]
    assert list(rule.find(Source("trio_rmq/new.py", code)))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("exemptions without a reason", "x = 1  # noqa: E501 - a long address"),
        ("exemptions without a reason", "x = 1  # type: ignore[misc]  # the stubs are wrong"),
        ("catching everything", "try:\n    pass\nexcept BaseException:\n    close()\n    raise"),
        ("keeping a cancellation", "try:\n    pass\nexcept trio.Cancelled:\n    close()\n    raise"),
        ("docstrings", '"""D."""\nclass _Private:\n    def method(self): ...'),
        ("files", "self.open('x')"),
        ("sleeping", "import trio\ntrio.sleep_forever()"),
    ],
)
def test_what_is_right_is_left_alone(name: str, code: str) -> None:
    (rule,) = [rule for rule in RULES if rule.name == name]
    assert not list(rule.find(Source("trio_rmq/new.py", code)))
