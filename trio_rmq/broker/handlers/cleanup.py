"""Cleaning up by request: log files that are expired, queue files of expired messages, queues that no topic owns.

306 CLEAN_EXPIRED_CONSUMEQUEUE, 316 CLEAN_UNUSED_TOPIC, 329 DELETE_EXPIRED_COMMITLOG.  Invariant: no clean-up forgets
where a queue of an existing topic goes on.  Source: RocketMQ AdminBrokerProcessor, DefaultMessageStore (4.9).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from trio_rmq.broker import names
from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.broker.topics import TopicTable
from trio_rmq.errors import RequestError
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command

logger = logging.getLogger(__name__)

SPARED_TOPICS = frozenset({names.SCHEDULE_TOPIC, names.HALF_TOPIC, names.OP_HALF_TOPIC, names.TIMER_TOPIC})
"""Topics that clients never make, whose queues stay whether or not the table has them."""

Saved = Callable[[], Awaitable[str | None]]
"""Waits until the tables as they are now are written; why they could not be, else None."""


class CleanupHandlers:
    """Clean-ups by request."""

    def __init__(self, topics: TopicTable, store: MessageStore, offsets: ConsumerOffsetTable, saved: Saved) -> None:
        self._topics = topics
        self._store = store
        self._offsets = offsets
        self._saved = saved

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE, self.clean_expired_queues)
        table.register(RequestCode.CLEAN_UNUSED_TOPIC, self.clean_unused_topics)
        table.register(RequestCode.DELETE_EXPIRED_COMMITLOG, self.delete_expired_log_files)

    def delete_expired_log_files(self, session: Session, request: Command) -> Command:
        """329: delete the log files that are expired, whatever the hour; answered when it has begun, as in RocketMQ."""
        logger.warning("%s asks to delete expired log files now", session.peer)
        self._store.delete_expired_soon()
        return request.reply()

    def clean_expired_queues(self, session: Session, request: Command) -> Later:
        """306: delete the queue files whose messages are all gone from the log; answered when that is done.

        The last file of a queue stays: it tells the queue's next offset, which RocketMQ forgets here.
        """
        logger.warning("%s asks to clean expired queues", session.peer)

        async def clean() -> Sequence[Command]:
            try:
                await self._store.expire_queues()
            except OSError as error:
                raise RequestError(
                    ResponseCode.SYSTEM_ERROR, f"a queue file cannot be deleted: {error.strerror or error}"
                ) from None
            return [request.reply()]

        return Later(clean)

    def clean_unused_topics(self, session: Session, request: Command) -> Later:
        """316: delete the queues of topics that are not in the table, and their groups' offsets; answered when done."""
        logger.warning("%s asks to clean the queues of unused topics", session.peer)

        async def clean() -> Sequence[Command]:
            for name in sorted({topic for topic, _ in self._store.queues()}):
                # Looked up now, not before: a topic may be made while others are deleted.
                if self._topics.get(name) is None and not _is_spared(name):
                    self._offsets.remove_topic(name)
                    try:
                        queues = await self._store.delete_topic(name)
                    except OSError as error:
                        raise RequestError(
                            ResponseCode.SYSTEM_ERROR,
                            f"the queues of {name} cannot be deleted: {error.strerror or error}",
                        ) from None
                    logger.info("%d queues of topic %s deleted: no topic owns them", queues, name)
            problem = await self._saved()
            if problem is not None:
                raise RequestError(ResponseCode.SYSTEM_ERROR, f"cleaned, but a restart will forget it: {problem}")
            return [request.reply()]

        return Later(clean)


def _is_spared(name: str) -> bool:
    return name in SPARED_TOPICS or name.startswith(names.LMQ_PREFIX)
