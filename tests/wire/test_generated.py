"""The tables in protocol/ and the code written from them are one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode

ROOT = Path(__file__).parents[2]


def table(name: str, key: str) -> Any:
    return json.loads((ROOT / "protocol" / name).read_text())[key]


def test_whole_files_are_what_the_script_writes() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_request_codes() -> None:
    entries = table("request_codes.json", "requests")
    assert (
        len(entries) == len({entry["number"] for entry in entries}) == len({entry["name"] for entry in entries}) == 162
    )
    assert {entry["name"]: entry["number"] for entry in entries} == {code.name: code.value for code in RequestCode}


def test_response_codes() -> None:
    entries = table("response_codes.json", "responses")
    assert len(entries) == len({entry["name"] for entry in entries}) == 69
    members = {name: code.value for name, code in ResponseCode.__members__.items()}
    assert {entry["name"]: entry["number"] for entry in entries} == members
    assert [code.name for code in ResponseCode if code in (209, 210, 211)] == [
        "POLLING_FULL",
        "POLLING_TIMEOUT",
        "BROKER_NOT_EXIST",
    ]


def test_headers() -> None:
    classes = table("headers.json", "headers")
    used = {
        entry[side]
        for entry in table("request_codes.json", "requests")
        for side in ("request_header", "response_header")
        if side in entry
    }
    assert used == classes.keys()
    for name, fields in classes.items():
        struct = getattr(headers, name)
        assert issubclass(struct, msgspec.Struct)
        assert list(struct.__struct_encode_fields__) == [field["name"] for field in fields]
        for field, made in zip(fields, msgspec.structs.fields(struct), strict=True):
            assert made.required == bool(field.get("required")), (name, field)
            if not made.required:
                assert made.default == field.get("default"), (name, field)


def test_config_keys() -> None:
    keys = table("config_keys.json", "keys")
    assert {"brokerName", "mappedFileSizeCommitLog", "listenPort", "namesrvAddr"} <= keys.keys()
    for key, entry in keys.items():
        assert entry["classes"], key
        assert entry.keys() & {"4.9.8", "5.3.3"}, key
