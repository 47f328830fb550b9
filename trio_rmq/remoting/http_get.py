"""One HTTP GET over an anyio stream, for short texts: h11 knows the protocol, this file only carries its bytes.

A connection a request, no redirects, a bound on the body and one deadline over everything.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import anyio
import h11

from trio_rmq.errors import ConfigError, ConnectError, RemotingError
from trio_rmq.remoting.address import Address, parse_address, system_reason
from trio_rmq.remoting.connection import TRANSPORT_ERRORS

READ_BYTES = 16 * 1024
HEAD_SIZE_MAX_BYTES = 16 * 1024
"""Largest status line with all header fields."""
HTTP_PORT = 80


def parse_http_url(url: str) -> tuple[Address, str]:
    """Where `url` leads, and its path with the query; ConfigError when it is no `http://host[:port]/path`."""
    parts = urlsplit(url.strip())
    if parts.scheme.lower() != "http" or "@" in parts.netloc or parts.path in ("", "/"):
        raise ConfigError(f"{url!r} is no http://host[:port]/path")
    place = parts.netloc if parts.netloc.rpartition(":")[2].isdigit() else f"{parts.netloc}:{HTTP_PORT}"
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    if not target.isascii() or not target.isprintable() or " " in target:
        raise ConfigError(f"{url!r} has characters in its path that must be written as %XX")
    return parse_address(place), target


async def http_get(url: str, *, timeout_seconds: float, body_size_max_bytes: int) -> bytes:
    """The body of the answer 200 to a GET of `url`; ConfigError for a URL that is none.

    ConnectError when nobody is there; RemotingError for another status, a body over the bound, what is no HTTP, or
    nothing complete in time.
    """
    place, target = parse_http_url(url)
    with anyio.move_on_after(timeout_seconds):
        try:
            stream = await anyio.connect_tcp(place.host, place.port)
        except OSError as error:
            raise ConnectError(f"cannot connect to {url}: {system_reason(error)}", address=url) from error
        async with stream:
            try:
                return await _exchange(stream, url, target, body_size_max_bytes)
            except h11.RemoteProtocolError as error:
                raise RemotingError(f"{url} does not speak HTTP: {error}", address=url) from error
            except TRANSPORT_ERRORS as error:
                raise RemotingError(f"{url} dropped the connection: {system_reason(error)}", address=url) from error
    raise RemotingError(f"{url} gave no answer within {timeout_seconds:g} s", address=url)


async def _exchange(stream: anyio.abc.ByteStream, url: str, target: str, body_size_max_bytes: int) -> bytes:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_SIZE_MAX_BYTES)
    fields = [("Host", urlsplit(url.strip()).netloc), ("Accept", "text/plain, */*"), ("Connection", "close")]
    request = http.send(h11.Request(method="GET", target=target, headers=fields))
    end = http.send(h11.EndOfMessage())
    await stream.send((request or b"") + (end or b""))
    body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            try:
                data = await stream.receive(READ_BYTES)
            except anyio.EndOfStream:
                data = b""
            http.receive_data(data)
        elif isinstance(event, h11.Response):
            if event.status_code != 200:
                raise RemotingError(f"{url} answered HTTP {event.status_code}, not 200", address=url)
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
            if len(body) > body_size_max_bytes:
                raise RemotingError(f"{url} answered more than {body_size_max_bytes} bytes", address=url)
        elif isinstance(event, h11.EndOfMessage):
            return body
