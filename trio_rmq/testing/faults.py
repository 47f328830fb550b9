"""Faults that a test asks of a broker: what is done to a request, and which requests it is done to.

Only values and choosing; `interposing.py` carries them out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command

SENDS = frozenset({RequestCode.SEND_MESSAGE, RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE})
"""Every way to send a message, or a batch."""
PULLS = frozenset({RequestCode.PULL_MESSAGE, RequestCode.LITE_PULL_MESSAGE})
"""Every way to pull."""
SEND_BACKS = frozenset({RequestCode.CONSUMER_SEND_MSG_BACK})
"""A consumer gives a message back, to get it again later."""
TRANSACTION_ENDS = frozenset({RequestCode.END_TRANSACTION})
"""A producer commits or rolls back."""
HEARTBEATS = frozenset({RequestCode.HEART_BEAT})
"""A client says that it is alive, and what it subscribes to."""
OFFSET_COMMITS = frozenset({RequestCode.UPDATE_CONSUMER_OFFSET})
"""A consumer says how far it is (pulls may say so too)."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer with this code, one of `ResponseCode`; nothing is done."""

    code: int = ResponseCode.SYSTEM_BUSY
    remark: str = "a test asked for this answer"


@dataclass(frozen=True, slots=True)
class Delay:
    """Begin to deal with the request only after so many seconds of the broker's clock."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Drop:
    """Lose the request; with `answer_only` it is dealt with, and its answer is lost."""

    answer_only: bool = False


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Deal with the request twice, as when it came twice; the first answer goes out."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection instead of dealing with the request, or with `answer_only` instead of answering it."""

    answer_only: bool = False


Fault = Fail | Delay | Drop | Duplicate | Disconnect


@dataclass(slots=True)
class Injection:
    """One fault that waits for its requests; `done` counts those it met."""

    fault: Fault
    requests: Collection[int]
    topic: str | None
    times: int | None
    skip: int
    done: int = 0

    def takes(self, request: Command) -> bool:
        """Whether this request is met; counts it."""
        if request.code not in self.requests or (self.topic is not None and topic_of(request) != self.topic):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None and self.done >= self.times:
            return False
        self.done += 1
        return True


def topic_of(request: Command) -> str | None:
    """The topic that a request names in its header, in full or in the short form of sends; None when it names none."""
    try:
        fields = request.ext_fields()
    except ProtocolError:
        return None  # its handler says what is wrong with it
    is_short = request.code in (RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE)
    return fields.get("topic") or (fields.get("b") if is_short else None)
