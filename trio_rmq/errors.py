"""Every error type of the package that a caller may want to catch, in one small tree.

Three questions decide the type: who is at fault (the peer's bytes, the caller, the world), is it local or an answer of
a remote party, and can it be tried again elsewhere.  An error that can reach a peer carries the response code that
says so and a sentence that names the mend.

Rules: decoders raise only `ProtocolError`; handlers raise only `RequestError` on purpose; anything else that leaves a
handler is a defect, which the session boundary answers with SYSTEM_ERROR and logs with its traceback.
"""

from collections.abc import Sequence


class RocketMQError(Exception):
    """Base of every error raised by this package."""


class ProtocolError(RocketMQError):
    """The peer sent bytes that are no valid frame, command, header, body or record.

    `response_code` is what to answer where an answer is possible; `fatal` says that the stream has lost its
    framing, or that not even the request id could be read, so that the connection must close.
    """

    def __init__(self, message: str, *, response_code: int = 1, fatal: bool = False) -> None:
        super().__init__(message)
        self.response_code = response_code
        self.fatal = fatal


class RequestError(RocketMQError):
    """Raised by a request handler: answer this request with `response_code` and `remark`, and nothing else happens."""

    def __init__(self, response_code: int, remark: str) -> None:
        super().__init__(remark)
        self.response_code = response_code
        self.remark = remark


class ConfigError(RocketMQError):
    """A configuration file, key or value cannot be used; the sentence names the key and the mend."""


class StoreError(RocketMQError):
    """The store cannot do what was asked: locked, unwritable, corrupt, full or failed; the sentence says which."""


class StoreLockedError(StoreError):
    """Another process holds the lock of this store folder."""


class StoreCorruptError(StoreError):
    """Synced data does not read back as it was written; starting would lose acknowledged messages."""


class StoreFailedError(StoreError):
    """A write or a sync failed; the log takes no more writes until the process is restarted and recovers from disk."""


class BrokerEndedError(RocketMQError):
    """A broker process ended that its supervisor must not start again; `status` is the exit status to pass on."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class RemotingError(RocketMQError):
    """A request could not be exchanged with a peer; `address` names it."""

    def __init__(self, message: str, *, address: str = "") -> None:
        super().__init__(message)
        self.address = address


class ListenError(RemotingError):
    """The server cannot listen on `address`: the port is taken, or the host is not one of this machine's."""


class ConnectError(RemotingError):
    """No connection could be made to `address`."""


class ConnectionLostError(RemotingError):
    """The connection closed while the request waited for its answer: it may or may not have been carried out."""


class RequestTimeoutError(RemotingError):
    """The deadline passed before the answer came: the request may or may not have been carried out."""


class TooManyRequestsError(RemotingError):
    """A local bound on requests in flight or bytes waiting to be written was reached; nothing was sent."""


class ResponseError(RocketMQError):
    """The peer answered with a response code other than the successful ones; `remark` is its text."""

    def __init__(self, response_code: int, remark: str | None, *, address: str = "") -> None:
        super().__init__(f"{address or 'peer'} answered {response_code}: {remark or 'no remark'}")
        self.response_code = response_code
        self.remark = remark
        self.address = address


class ClientError(RocketMQError):
    """A producer or consumer was used wrongly, or could not do its work; the sentence names the mend."""


class RouteNotFoundError(ClientError):
    """No name server knows a usable route for the topic."""


class SendError(ClientError):
    """A send failed for good: the message says what each try met, and where; `tries` has that one by one.

    `response_code` is the last broker's answer, None when none answered.
    """

    def __init__(self, message: str, *, response_code: int | None = None, tries: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.response_code = response_code
        self.tries = list(tries)


class FilterError(RocketMQError):
    """A SQL92 filter that cannot be read, or that met a property value which it cannot compare.

    `column` is where in the expression, counted in characters from 1.  A broker answers the former with
    SUBSCRIPTION_PARSE_FAILED (23) and treats the latter as no match.
    """

    def __init__(self, message: str, *, column: int) -> None:
        super().__init__(f"column {column}: {message}")
        self.column = column
