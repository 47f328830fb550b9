"""What a recall handle says: which broker keeps the message.  Source: RocketMQ 5.3.3 RecallMessageHandle."""

from __future__ import annotations

import base64
import binascii

from trio_rmq.errors import ClientError

_VERSION = "v1"


def broker_of_handle(recall_handle: str) -> str:
    """The name of the broker that keeps the message; ClientError for what is no handle."""
    try:
        words = base64.b64decode(recall_handle.encode(), altchars=b"-_", validate=True).decode().split(" ")
    except (binascii.Error, ValueError):
        words = []
    if len(words) < 5 or words[0] != _VERSION:
        raise ClientError("this is no recall handle: take SendResult.recall_handle of the message's send")
    return words[2]
