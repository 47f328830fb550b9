"""Producers and consumers for programs without an event loop: scripts, and web frameworks that work in threads.

The same clients, with plain methods that return when the work is done; see `portal` for where they run.
"""

from trio_rmq.client.blocking.consumer import LitePullConsumer, PullConsumer, PushConsumer
from trio_rmq.client.blocking.portal import BlockingClient, BlockingPortalProvider
from trio_rmq.client.blocking.producer import Producer, TransactionProducer

__all__ = [
    "BlockingClient",
    "BlockingPortalProvider",
    "LitePullConsumer",
    "Producer",
    "PullConsumer",
    "PushConsumer",
    "TransactionProducer",
]
