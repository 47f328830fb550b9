"""What the store keeps of a plain message's properties: all but WAIT, and the broker's own, as the CLUSTER it came to.

Most messages begin with their unique id and differ from earlier ones in nothing else: what was found out of the rest is
remembered.  Invariants: a remembered rest gives what the whole text would; the memory is bounded.
Source: RocketMQ SendMessageProcessor (4.9).
"""

from __future__ import annotations

from collections.abc import Mapping

from trio_rmq.wire import properties as prop
from trio_rmq.wire.hashing import tags_code

Stored = tuple[bytes, int, bool]
"""The properties to store, the tags code of the message's queue entry, and whether its sender waits for the sync."""

KNOWN_MAX = 1024
"""Most rests remembered; all are forgotten when one more comes."""

PROPERTY_END = b"\x02"

UNIQUE_KEY_NAME = f"{prop.UNIQUE_KEY}\x01".encode()
"""How a text begins whose rest may be remembered."""

_WAIT_TRUE = "\x02WAIT\x01true"


class StoredProperties:
    """Makes the stored properties of a broker's plain messages; `also` are further ones of its own."""

    def __init__(self, cluster_name: str, also: Mapping[str, str] | None = None) -> None:
        own = {prop.CLUSTER: cluster_name, **(also or {})}
        self._own = prop.format_properties(own)
        self._own_names = [(name, f"{name}{prop.NAME_VALUE_SEPARATOR}") for name in own]
        self.rests: dict[bytes, Stored] = {}
        """By what follows the unique id and its end in a text: what follows the unique id in what is stored of it."""

    def known(self, text: bytes) -> Stored | None:
        """`plain` of a text whose like `remember` was called for, but for its unique id; else None."""
        start, _, rest = text.partition(PROPERTY_END)
        if (found := self.rests.get(rest)) is not None and start.startswith(UNIQUE_KEY_NAME):
            stored, code, waits = found
            return start + stored, code, waits
        return None

    def remember(self, text: bytes, stored: Stored) -> None:
        """`stored` is what `plain` made of `text`, and nothing else in it asks for anything."""
        start, end, rest = text.partition(PROPERTY_END)
        if end and start.startswith(UNIQUE_KEY_NAME) and stored[0].startswith(start):
            if len(self.rests) >= KNOWN_MAX:
                self.rests.clear()
            self.rests[rest] = stored[0][len(start) :], stored[1], stored[2]

    def plain(self, text: str) -> Stored:
        """Of a message that is delivered at once."""
        waits = True
        at = text.find(_WAIT_TRUE)
        if at >= 0:  # as clients write it
            after = at + len(_WAIT_TRUE)
            if text[after : after + 1] in ("", prop.PROPERTY_SEPARATOR):
                text = text[:at] + text[after:]
        if "WAIT\x01" in text:
            waits = prop.flag_property(text, prop.WAIT, True)
            text = prop.remove_property(text, prop.WAIT)
        text = self.with_own(text)
        return text.encode(), _tags_code(text), waits

    def deferred(self, text: str) -> Stored:
        """Of a message that waits for something: it keeps WAIT, as in 4.9."""
        waits = prop.flag_property(text, prop.WAIT, True) if "WAIT\x01" in text else True
        text = self.with_own(text)
        return text.encode(), _tags_code(text), waits

    def with_own(self, text: str) -> str:
        """`text` with the broker's own properties, in the place of those of their names that it may have."""
        for name, beginning in self._own_names:
            if beginning in text:
                text = prop.remove_property(text, name)
        if not text:
            return self._own
        return f"{text}{'' if text[-1] == prop.PROPERTY_SEPARATOR else prop.PROPERTY_SEPARATOR}{self._own}"


def _tags_code(text: str) -> int:
    return tags_code(prop.property_of(text, prop.TAGS)) if "TAGS\x01" in text else 0
