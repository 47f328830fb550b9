"""The broker's table of consumer groups.

Invariants: every change raises the data version and marks the table as unsaved; a group that was made here on first use
has a valid name.  Saved as config/subscriptionGroup.json.  Source: RocketMQ SubscriptionGroupManager (4.9).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from trio_rmq.broker import names
from trio_rmq.clock import wall_ms
from trio_rmq.errors import RequestError
from trio_rmq.limits import GROUPS_MAX
from trio_rmq.wire.codes import ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import (
    SubscriptionGroupConfig,
    SubscriptionGroupWrapper,
    decode_group_table,
    encode_group_table,
)
from trio_rmq.wire.topics import DataVersion

logger = logging.getLogger(__name__)

MAX_RECONSUME_TIMES_SINCE = 121
"""The first client version (V3_4_9) whose own maximum of retries counts."""


def retries_most(request: Command, group: SubscriptionGroupConfig, asked: int | None) -> int:
    """How often a message of the group is delivered again before it is dead, as a client's request asks for it."""
    return group.retry_max_times if asked is None or request.version < MAX_RECONSUME_TIMES_SINCE else asked


class GroupTable:
    """All consumer groups of one broker; `auto_create` makes an unknown one on first use."""

    def __init__(self, *, auto_create: bool, lmq_enable: bool = False) -> None:
        self._lmq_enable = lmq_enable
        self.auto_create = auto_create
        """Whether an unknown group is made on first use."""
        self._groups = {name: SubscriptionGroupConfig(group_name=name) for name in names.SYSTEM_GROUPS}
        self.data_version = DataVersion(counter=0, timestamp=wall_ms())
        self.on_change: Callable[[], None] | None = None
        """Told after each change."""
        self.unsaved = False
        """Whether the table differs from what was last encoded for its file."""

    def get(self, name: str) -> SubscriptionGroupConfig | None:
        """The group, or None.  With enableLmq every `%LMQ%` group is there, as new, without being kept."""
        group = self._groups.get(name)
        if group is None and self._is_light(name):
            return SubscriptionGroupConfig(group_name=name)
        return group

    def _is_light(self, name: str) -> bool:
        return self._lmq_enable and name.startswith(names.LMQ_PREFIX)

    def find(self, name: str) -> SubscriptionGroupConfig | None:
        """The group, made when it is missing, has a valid name and groups are made on first use; else None."""
        group = self.get(name)
        if group is None and self.auto_create and names.group_problem(name) is None and len(self._groups) < GROUPS_MAX:
            group = SubscriptionGroupConfig(group_name=name)
            self.update(group)
        return group

    def __iter__(self) -> Iterator[SubscriptionGroupConfig]:
        return iter(list(self._groups.values()))

    def update(self, group: SubscriptionGroupConfig) -> None:
        """Make or replace a group, but no `%LMQ%` one; RequestError SYSTEM_ERROR when there are GROUPS_MAX already."""
        if self._is_light(group.group_name):
            return
        if group.group_name not in self._groups and len(self._groups) >= GROUPS_MAX:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR, f"this broker has {GROUPS_MAX} groups, the most it takes: delete some"
            )
        logger.info("group %s %s", group.group_name, "changed" if group.group_name in self._groups else "made")
        self._groups[group.group_name] = group
        self._changed()

    def delete(self, name: str) -> bool:
        """Remove a group; False when there was none."""
        if self._groups.pop(name, None) is None:
            return False
        logger.info("group %s deleted", name)
        self._changed()
        return True

    def wrapper(self) -> SubscriptionGroupWrapper:
        """The table with its version, as tools and slaves ask for it."""
        return SubscriptionGroupWrapper(data_version=self.data_version, subscription_group_table=dict(self._groups))

    def _changed(self) -> None:
        self.data_version = self.data_version.next_version(wall_ms())
        self.unsaved = True
        if self.on_change is not None:
            self.on_change()

    def encode(self) -> bytes:
        """The content of subscriptionGroup.json; the table counts as saved."""
        self.unsaved = False
        return encode_group_table(self.wrapper(), pretty=True)

    def load(self, content: bytes) -> None:
        """Take the content of subscriptionGroup.json."""
        wrapper = decode_group_table(content)
        self._groups.update(wrapper.subscription_group_table)
        self.data_version = wrapper.data_version
