"""Addresses as users write them."""

from __future__ import annotations

import pytest

from trio_rmq.errors import ConfigError
from trio_rmq.remoting.address import Address, format_address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:10911", Address("127.0.0.1", 10911)),
        ("broker-a.example:9876", Address("broker-a.example", 9876)),
        ("[::1]:10911", Address("::1", 10911)),
        (" localhost:0 ", Address("localhost", 0)),
        ("ws://127.0.0.1:10911", Address("127.0.0.1", 10911, "/")),
        ("wss://127.0.0.1:1", Address("127.0.0.1", 1, "/", tls=True)),
        ("WS://[::1]:80/rmq?x=1", Address("::1", 80, "/rmq?x=1")),
    ],
)
def test_parse(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":1", "host:port", "host:70000", "::1:80", "wsx://host:1", "http://host:1", "host:-1"]
)
def test_what_is_no_address_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        parse_address(text)


def test_format() -> None:
    assert format_address("127.0.0.1", 80) == "127.0.0.1:80"
    assert format_address("::1", 80) == "[::1]:80"
    assert format_address("::ffff:10.0.0.1", 80) == "10.0.0.1:80"
    assert format_address("fe80::1%eth0", 80) == "[fe80::1]:80"
