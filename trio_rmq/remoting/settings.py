"""The bounds one listener holds its connections to; the defaults and their reasons are in `limits`."""

from __future__ import annotations

from dataclasses import dataclass

from trio_rmq import limits


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotingSettings:
    """Bounds of one listener; sizes in bytes, times in seconds.  `allowed_origins` are the web pages' origins
    (`https://example.org`) whose scripts may connect by WebSocket; `*` allows every one, and none is the default.
    """

    connections_max: int = limits.CONNECTIONS_MAX
    requests_in_flight_max: int = limits.REQUESTS_IN_FLIGHT_MAX
    in_flight_bytes_pause: int = limits.IN_FLIGHT_BYTES_PAUSE
    outgoing_bytes_pause: int = limits.OUTGOING_BYTES_PAUSE
    outgoing_bytes_max: int = limits.OUTGOING_BYTES_MAX
    write_stall_seconds: float = limits.WRITE_STALL_SECONDS
    connection_idle_seconds: float = limits.CONNECTION_IDLE_SECONDS
    handshake_seconds: float = limits.HANDSHAKE_SECONDS
    read_chunk_bytes: int = limits.READ_CHUNK_BYTES
    message_size_max_bytes: int = limits.FRAME_SIZE_MAX_BYTES
    allowed_origins: frozenset[str] = frozenset()


DEFAULT_SETTINGS = RemotingSettings()
