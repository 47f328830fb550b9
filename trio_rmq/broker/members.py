"""Who is connected: producers and consumers by group, as their heartbeats say, and what each group subscribes to.

Invariants: a client is a member of a group over exactly one session, the one of its last heartbeat; a group without
members is not kept; each join, leave, loss or change of subscription is told at once to every member of a clustering
group.
One subscription table a group: for a topic the higher version wins, and a topic that the newest heartbeat does not name
is dropped.  Source: RocketMQ ConsumerManager, ConsumerGroupInfo, ProducerManager (4.9).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from trio_rmq.remoting.session import Session
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import FLAG_ONEWAY, Command
from trio_rmq.wire.headers import NotifyConsumerIdsChangedRequestHeader
from trio_rmq.wire.heartbeat import BROADCASTING, ConsumerData, SubscriptionData

logger = logging.getLogger(__name__)

EXAMPLES_MAX = 4
"""Most members named by the warning of different subscriptions, each with one of its own: a header carries it."""


@dataclass(slots=True)
class Member:
    """One client of one group; `last_heard` in seconds of the monotonic clock."""

    client_id: str
    session: Session
    language: str
    version: int
    last_heard: float
    subscriptions: tuple[tuple[str, str, str], ...] = ()


@dataclass(slots=True)
class ConsumerGroup:
    """One consumer group's members by client id, and its subscriptions by topic."""

    name: str
    consume_type: str
    message_model: str
    consume_from_where: str
    members: dict[str, Member] = field(default_factory=dict)
    subscriptions: dict[str, SubscriptionData] = field(default_factory=dict)
    warned: tuple[object, ...] = ()
    problem: str = ""


class Members:
    """All connected clients of one broker.

    `notify_enabled(group)` says whether the group's members are told of changes.
    """

    def __init__(self, notify_enabled: Callable[[str], bool], *, expiry_seconds: float) -> None:
        self._notify_enabled = notify_enabled
        self._expiry_seconds = expiry_seconds
        self._consumers: dict[str, ConsumerGroup] = {}
        self._producers: dict[str, dict[str, Member]] = {}
        self._producer_clients: dict[str, dict[str, Member]] = {}
        """The same by client id, then by group."""
        self._somebody = trio.Event()
        self.on_subscribed: Callable[[str, Sequence[SubscriptionData]], None] | None = None
        """Told, at each heartbeat of a consumer, its group and subscriptions."""
        self.on_deserted: Callable[[str], None] | None = None
        """Told a consumer group whose last member left."""
        self.on_producer_group: Callable[[str], None] | None = None
        """Told the name of a producer group that has its first connected member."""

    # -- heartbeats ---------------------------------------------------------------------------------------------

    def heartbeat_producer(self, group: str, client_id: str, session: Session, request: Command) -> None:
        """A producer is alive."""
        members = self._producers.get(group)
        is_first = members is None
        if members is None:
            members = self._producers[group] = {}
        member = members[client_id] = _member(client_id, session, request)
        self._producer_clients.setdefault(client_id, {})[group] = member
        self._somebody.set()
        if is_first and self.on_producer_group is not None:
            self.on_producer_group(group)

    def heartbeat_consumer(self, data: ConsumerData, client_id: str, session: Session, request: Command) -> str:
        """A consumer is alive; its group is told when this is news.  What is wrong with the group, or nothing."""
        group = self._consumers.get(data.group_name)
        if group is None:
            group = ConsumerGroup(data.group_name, data.consume_type, data.message_model, data.consume_from_where)
            self._consumers[data.group_name] = group
        old = group.members.get(client_id)
        member = _member(client_id, session, request)
        member.subscriptions = tuple(sorted(map(_subscription_key, data.subscription_data_set)))
        group.members[client_id] = member
        group.consume_type = data.consume_type
        group.message_model = data.message_model
        group.consume_from_where = data.consume_from_where
        changed = self._update_subscriptions(group, data.subscription_data_set)
        if self.on_subscribed is not None:
            self.on_subscribed(group.name, data.subscription_data_set)
        if old is None or old.session is not session or changed:
            self._notify(group)
        self._warn_of_differences(group)
        self._somebody.set()
        return group.problem

    def _update_subscriptions(self, group: ConsumerGroup, told: list[SubscriptionData]) -> bool:
        changed = False
        for data in told:
            old = group.subscriptions.get(data.topic)
            if old is None:
                changed = True
                group.subscriptions[data.topic] = data
            elif data.sub_version > old.sub_version:
                group.subscriptions[data.topic] = data
        named = {data.topic for data in told}
        for topic in [topic for topic in group.subscriptions if topic not in named]:
            changed = True
            del group.subscriptions[topic]
        return changed

    def _warn_of_differences(self, group: ConsumerGroup) -> None:
        different = {member.subscriptions for member in group.members.values()}
        if len(different) < 2:
            group.warned, group.problem = (), ""
            return
        key = tuple(sorted(different))
        if group.warned == key:
            return
        group.warned = key
        examples = {member.subscriptions: member for member in reversed(list(group.members.values()))}
        who = "; ".join(
            f"{member.client_id} to {', '.join(f'{topic} {text!r}' for topic, text, _ in member.subscriptions)}"
            for member in list(reversed(examples.values()))[:EXAMPLES_MAX]
        )
        group.problem = (
            f"members of group {group.name} subscribe differently, so messages will be missed: {who}; "
            "give all the same ones"
        )
        logger.warning("%s", group.problem)

    # -- leaving ------------------------------------------------------------------------------------------------

    def unregister(self, client_id: str, producer_group: str | None, consumer_group: str | None) -> None:
        """A client leaves a producer group, a consumer group or both."""
        if producer_group:
            self._leave_producers(producer_group, client_id)
        if consumer_group:
            self._leave_consumers(consumer_group, client_id)

    def session_closed(self, session: Session) -> None:
        """A connection ended: its clients are gone."""
        self._leave_where(lambda member: member.session is session)

    def remove_expired(self, now: float) -> None:
        """Drop clients that were silent for too long, and connections that nobody else uses; their groups are told."""
        gone = self._leave_where(lambda member: member.last_heard + self._expiry_seconds <= now)
        alive = {member.session for member in self._all()}
        for member in gone:
            logger.warning(
                "client %s (%s) was silent for too long and is dropped", member.client_id, member.session.peer
            )
            if not member.session.closed and member.session not in alive:
                member.session.close("its clients were silent for too long")

    async def run_expiry(self) -> None:
        """Drop silent clients for ever, sleeping until the first could have expired."""
        while True:
            heard = [member.last_heard for member in self._all()]
            if not heard:
                self._somebody = trio.Event()
                await self._somebody.wait()
                continue
            await trio.sleep_until(min(heard) + self._expiry_seconds)
            self.remove_expired(trio.current_time())

    def _all(self) -> list[Member]:
        members = [member for group in self._producers.values() for member in group.values()]
        members += [member for group in self._consumers.values() for member in group.members.values()]
        return members

    def _leave_where(self, gone: Callable[[Member], bool]) -> list[Member]:
        left = []
        for name, producers in list(self._producers.items()):
            for member in [member for member in producers.values() if gone(member)]:
                self._leave_producers(name, member.client_id)
                left.append(member)
        for group in list(self._consumers.values()):
            for member in [member for member in group.members.values() if gone(member)]:
                self._leave_consumers(group.name, member.client_id)
                left.append(member)
        return left

    def _leave_producers(self, group: str, client_id: str) -> None:
        producers = self._producers.get(group, {})
        producers.pop(client_id, None)
        if not producers:
            self._producers.pop(group, None)
        groups = self._producer_clients.get(client_id, {})
        groups.pop(group, None)
        if not groups:
            self._producer_clients.pop(client_id, None)

    def _leave_consumers(self, name: str, client_id: str) -> None:
        group = self._consumers.get(name)
        if group is None or group.members.pop(client_id, None) is None:
            return
        if group.members:
            self._notify(group)
            self._warn_of_differences(group)
        else:
            del self._consumers[name]
            if self.on_deserted is not None:
                self.on_deserted(name)

    def _notify(self, group: ConsumerGroup) -> None:
        if group.message_model == BROADCASTING or not self._notify_enabled(group.name):
            return
        for member in group.members.values():
            if not member.session.closed:
                member.session.send_nowait(
                    Command(
                        RequestCode.NOTIFY_CONSUMER_IDS_CHANGED,
                        header=NotifyConsumerIdsChangedRequestHeader(consumer_group=group.name),
                        flag=FLAG_ONEWAY,
                    )
                )

    # -- asking -------------------------------------------------------------------------------------------------

    def consumer_group(self, name: str) -> ConsumerGroup | None:
        """The group with its members, or None when nobody is connected."""
        return self._consumers.get(name)

    def producers(self, group: str) -> list[Member]:
        """The connected producers of a group."""
        return list(self._producers.get(group, {}).values())

    def producer_client(self, client_id: str) -> Member | None:
        """The connected producer of that client id, by its last heartbeat for any group; None when there is none."""
        open_ones = [one for one in self._producer_clients.get(client_id, {}).values() if not one.session.closed]
        return max(open_ones, key=lambda member: member.last_heard, default=None)

    def all_producers(self) -> dict[str, list[Member]]:
        """The connected producers by group."""
        return {group: list(members.values()) for group, members in self._producers.items()}

    def groups_of_topic(self, topic: str) -> list[str]:
        """Connected consumer groups that subscribe to the topic."""
        return [group.name for group in self._consumers.values() if topic in group.subscriptions]


def _member(client_id: str, session: Session, request: Command) -> Member:
    return Member(client_id, session, request.language, request.version, trio.current_time())


def _subscription_key(data: SubscriptionData) -> tuple[str, str, str]:
    tags = " || ".join(sorted(data.tags_set)) if data.tags_set else data.sub_string
    return data.topic, tags, data.expression_type
