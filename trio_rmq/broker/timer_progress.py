"""How far timers are delivered, as config/timerProgress.json keeps it.

Invariant: of the timer queue's messages before `queue_offset`, those due up to `delivered_ms` have a delivered copy
that is synced and stands before `log_offset` in the log; none before `first_offset` waits.  What a crash leaves
delivered beyond that is found in the log from `log_offset` on.  After the clock was set back a message may wait that
is due before others that were delivered: then a fence - a queue offset and a time - says that what stands before that
offset and was due by that time was delivered too.
"""

from __future__ import annotations

import msgspec

from trio_rmq.errors import ProtocolError


class Progress(msgspec.Struct, frozen=True, rename="camel"):
    """Offsets of the timer queue and of the log; ms since 1970."""

    first_offset: int = 0
    queue_offset: int = 0
    delivered_ms: int = 0
    log_offset: int = 0
    fences: tuple[tuple[int, int], ...] = ()


class TimerProgress:
    """The table of timerProgress.json."""

    def __init__(self) -> None:
        self.now = Progress()
        self.unsaved = False
        """Whether it differs from what was last encoded for its file."""

    def set(self, progress: Progress) -> None:
        """The progress from now on; its file follows."""
        if progress != self.now:
            self.now = progress
            self.unsaved = True

    def encode(self) -> bytes:
        """The content of timerProgress.json; it counts as saved."""
        self.unsaved = False
        return msgspec.json.format(msgspec.json.encode(self.now))

    def load(self, content: bytes) -> None:
        """Take the content of timerProgress.json; ProtocolError when it is none."""
        try:
            self.now = msgspec.json.decode(content, type=Progress)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"no progress of timers: {error}") from None
