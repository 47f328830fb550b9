"""The key-value table: namespaces of texts, kept in kvConfig.json.

Brokers get the namespace ORDER_TOPIC_CONFIG in the answer to each registration; tools read and write the rest.
Invariant: the table in memory is what the next save writes; `changed` wakes the task that saves it.
Source: RocketMQ KVConfigManager; the file's form is `{"configTable": {namespace: {key: value}}}`.
"""

from __future__ import annotations

import msgspec

from trio_rmq.errors import ProtocolError

ORDER_TOPIC_CONFIG = "ORDER_TOPIC_CONFIG"
"""Namespace of `broker:queues;...` by topic, for topics whose order is global."""


class _File(msgspec.Struct, rename="camel"):
    config_table: dict[str, dict[str, str]]


class KVConfigTable:
    """The table of one name server."""

    def __init__(self) -> None:
        self._table: dict[str, dict[str, str]] = {}

    def put(self, namespace: str, key: str, value: str) -> None:
        """Set one value."""
        self._table.setdefault(namespace, {})[key] = value

    def get(self, namespace: str, key: str) -> str | None:
        """One value, or None."""
        return self._table.get(namespace, {}).get(key)

    def delete(self, namespace: str, key: str) -> None:
        """Remove one value; nothing happens when there is none."""
        self._table.get(namespace, {}).pop(key, None)

    def namespace(self, namespace: str) -> dict[str, str] | None:
        """All values of a namespace, or None when nothing was ever put there."""
        return self._table.get(namespace)

    def encode(self) -> bytes:
        """The content of kvConfig.json."""
        return msgspec.json.format(msgspec.json.encode(_File(self._table)), indent=2)

    def load(self, content: bytes) -> None:
        """Take the content of kvConfig.json; ProtocolError when it is none."""
        try:
            self._table = msgspec.json.decode(content, type=_File).config_table
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"kvConfig.json cannot be read: {error}") from None
