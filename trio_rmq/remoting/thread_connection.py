"""A client's connection for one thread at a time, in system calls that block: no event loop, no turns, no switches.

Whoever sends one message after another only waits for answers, and a loop in another thread makes that wait longer:
there and back are two switches of threads.  Here the thread that asks writes and reads itself.  TCP without TLS only.
Invariants: a connection without its answer in time is closed; an answer is known by its opaque, and what else comes is
passed over.
"""

from __future__ import annotations

import socket
from time import monotonic

from trio_rmq.errors import ConnectError, ConnectionLostError, ProtocolError, RequestTimeoutError
from trio_rmq.remoting.address import parse_address, system_reason
from trio_rmq.remoting.direct_socket import READ_BYTES
from trio_rmq.remoting.request_table import OPAQUE_MAX
from trio_rmq.wire.command import FLAG_RESPONSE, Command
from trio_rmq.wire.frame import FrameSplitter, encode_frame

thread_time = monotonic
"""The clock of threads without a loop, in seconds."""

TRUSTED_SECONDS = 0.02
"""So long after its last answer a connection is taken to be open still; later one look tells."""
IDLE_SECONDS = 30.0
"""After so long it is closed rather than used: firewalls and servers (after two minutes) forget idle connections."""


class ThreadConnection:
    """Connected to `address`, which is `host:port`; ConnectError when that takes longer than the time given."""

    __slots__ = ("_last_answer", "_opaque", "_seconds", "_socket", "_splitter", "address")

    def __init__(self, address: str, timeout_seconds: float) -> None:
        self.address = address
        target = parse_address(address)
        try:
            self._socket = socket.create_connection((target.host, target.port), timeout_seconds)
        except OSError as error:
            reason = f"not within {timeout_seconds:.3g} s" if isinstance(error, TimeoutError) else system_reason(error)
            raise ConnectError(f"cannot connect to {address}: {reason}", address=address) from error
        if self._socket.getsockname() == self._socket.getpeername():
            self._socket.close()  # a port of the ephemeral range nobody listens on can be joined with itself
            raise ConnectError(f"cannot connect to {address}: nobody listens there", address=address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._seconds = timeout_seconds
        self._splitter = FrameSplitter()
        self._opaque = 0
        self._last_answer = thread_time()

    def is_usable(self) -> bool:
        """Whether the peer seems to keep the connection still."""
        idle = thread_time() - self._last_answer
        if idle < TRUSTED_SECONDS:
            return True
        if idle > IDLE_SECONDS:
            return False
        self._set_timeout(0.0)
        try:
            self._socket.recv(1)  # its end, or what nobody asked for
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def request(self, command: Command, timeout_seconds: float) -> Command:
        """Send `command` and return its response, whatever its code.

        RequestTimeoutError, or ConnectionLostError: either way the request may have been carried out, and the
        connection is closed; it is too when anything else, an interrupt for one, ends the wait.
        """
        self._opaque = command.opaque = self._opaque % OPAQUE_MAX + 1
        began = thread_time()
        try:
            self._set_timeout(timeout_seconds)
            self._socket.sendall(encode_frame(command))
            while True:
                now = thread_time()
                if now - began > TRUSTED_SECONDS:
                    self._set_timeout(max(began + timeout_seconds - now, 0.001))
                data = self._socket.recv(READ_BYTES)
                if not data:
                    raise self._lost("closed by the server")
                for answer in self._splitter.feed(data):
                    if answer.flag & FLAG_RESPONSE and answer.opaque == command.opaque:
                        self._last_answer = now
                        return answer
        except BaseException as error:
            self.close()
            if isinstance(error, TimeoutError):
                raise RequestTimeoutError(
                    f"{self.address} gave no answer within {timeout_seconds:.3g} s", address=self.address
                ) from None
            if isinstance(error, OSError):
                raise self._lost(f"lost: {error}") from error
            if isinstance(error, ProtocolError):
                raise self._lost(f"the server sent no valid command: {error}") from error
            raise

    def close(self) -> None:
        """Close at once."""
        self._socket.close()

    def _set_timeout(self, seconds: float) -> None:
        if seconds != self._seconds:
            self._seconds = seconds
            self._socket.settimeout(seconds)

    def _lost(self, reason: str) -> ConnectionLostError:
        return ConnectionLostError(f"the connection to {self.address} ended: {reason}", address=self.address)
