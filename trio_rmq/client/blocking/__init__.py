"""Consumers for programs without an event loop: scripts, and web frameworks that work in threads.

The same clients, with plain methods that return when the work is done; see `portal` for where they run.
"""

from trio_rmq.client.blocking.consumer import LitePullConsumer, PullConsumer, PushConsumer
from trio_rmq.client.blocking.portal import BlockingClient, BlockingPortalProvider

__all__ = ["BlockingClient", "BlockingPortalProvider", "LitePullConsumer", "PullConsumer", "PushConsumer"]
