"""What the store keeps of a plain message's properties: all but WAIT, and the broker's own, as the CLUSTER it came to.

Most messages begin with their unique id and differ from earlier ones in nothing else: what was found out of the rest is
remembered.  Invariants: a remembered rest gives what the whole text would; the memory is bounded.
Source: RocketMQ SendMessageProcessor (4.9).
"""

from __future__ import annotations

from collections.abc import Mapping

from trio_rmq.wire import properties as prop
from trio_rmq.wire.hashing import tags_code

Stored = tuple[str, int, bool]
"""The properties to store, the tags code of the message's queue entry, and whether its sender waits for the sync."""

KNOWN_MAX = 1024
"""Most texts remembered; all are forgotten when one more comes."""

_UNIQUE_KEY = f"{prop.UNIQUE_KEY}\x01"
_PROPERTY_END = "\x02"
_WAIT_TRUE = "\x02WAIT\x01true"


class StoredProperties:
    """Makes the stored properties of a broker's plain messages; `also` are further ones of its own."""

    def __init__(self, cluster_name: str, also: Mapping[str, str] | None = None) -> None:
        own = {prop.CLUSTER: cluster_name, **(also or {})}
        self._own = prop.format_properties(own)
        self._own_names = [(name, f"{name}{prop.NAME_VALUE_SEPARATOR}") for name in own]
        self._known: dict[str, Stored] = {}

    def known(self, text: str) -> Stored | None:
        """`plain` of a text whose like `remember` was called for, but for its unique id; else None."""
        end = text.find(_PROPERTY_END)
        if end > 0 and (found := self._known.get(text[end:])) is not None and text.startswith(_UNIQUE_KEY):
            rest, code, waits = found
            return text[:end] + rest, code, waits
        return None

    def remember(self, text: str, stored: Stored) -> None:
        """`stored` is what `plain` made of `text`, and nothing else in it asks for anything."""
        end = text.find(_PROPERTY_END)
        start = text[:end]
        if end > 0 and start.startswith(_UNIQUE_KEY) and stored[0].startswith(start):
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[text[end:]] = stored[0][end:], stored[1], stored[2]

    def plain(self, text: str) -> Stored:
        """Of a message that is delivered at once."""
        waits = True
        at = text.find(_WAIT_TRUE)
        if at >= 0:  # as clients write it
            after = at + len(_WAIT_TRUE)
            if text[after : after + 1] in ("", _PROPERTY_END):
                text = text[:at] + text[after:]
        if "WAIT\x01" in text:
            waits = prop.flag_property(text, prop.WAIT, True)
            text = prop.remove_property(text, prop.WAIT)
        text = self.with_own(text)
        return text, _tags_code(text), waits

    def deferred(self, text: str) -> Stored:
        """Of a message that waits for something: it keeps WAIT, as in 4.9."""
        waits = prop.flag_property(text, prop.WAIT, True) if "WAIT\x01" in text else True
        text = self.with_own(text)
        return text, _tags_code(text), waits

    def with_own(self, text: str) -> str:
        """`text` with the broker's own properties, in the place of those of their names that it may have."""
        for name, beginning in self._own_names:
            if beginning in text:
                text = prop.remove_property(text, name)
        if not text:
            return self._own
        return f"{text}{'' if text[-1] == _PROPERTY_END else _PROPERTY_END}{self._own}"


def _tags_code(text: str) -> int:
    return tags_code(prop.property_of(text, prop.TAGS)) if "TAGS\x01" in text else 0
