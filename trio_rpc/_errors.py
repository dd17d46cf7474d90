"""What can go wrong, by layer, and whether the work may have run.

::

    RpcError                       .code  .may_have_run  .peer
    ├── RemoteError                the handler's own failure (code, name, message, data, error_id)
    ├── Refused                    not run: Overloaded, Draining, Unauthenticated,
    │                              PermissionDenied, Unimplemented, InvalidArgument
    ├── ConnectionFailed           ConnectError (never connected)
    │                              ConnectionLost (mid-call) > PeerUnresponsive
    ├── PoolError                  PoolTimeout, PoolExhausted, PoolClosed, CircuitOpen
    ├── RemoteCancelled            the peer stopped the handler; never a Trio Cancelled
    ├── CodecError                 EncodeError, DecodeError (which field, which type)
    └── ProtocolError              LocalProtocolError, RemoteProtocolError

`may_have_run` is decided where it is known and never guessed later: only the server's dispatch, before it has
entered the handler, may say that a request which reached it did not run.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar

__all__ = [
    "CircuitOpen",
    "Code",
    "CodecError",
    "ConnectError",
    "ConnectionFailed",
    "ConnectionLost",
    "DecodeError",
    "Draining",
    "EncodeError",
    "InvalidArgument",
    "LocalProtocolError",
    "Overloaded",
    "PeerUnresponsive",
    "PermissionDenied",
    "PoolClosed",
    "PoolError",
    "PoolExhausted",
    "PoolTimeout",
    "ProtocolError",
    "Refused",
    "RemoteCancelled",
    "RemoteError",
    "RemoteProtocolError",
    "RpcError",
    "Unauthenticated",
    "Unimplemented",
]


class Code(enum.IntEnum):
    """The sixteen gRPC status names (and OK), with gRPC's numbers.

    The library itself never chooses NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE or
    DATA_LOSS: seeing one proves that a handler chose it.
    """

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """The parent of everything that this library raises of itself.

    Attributes:
        code: one of `Code`.
        may_have_run: True if any attempt of the call may have entered its handler. False is a promise.
        peer: the other side's address, where one is known, else None.
        attempts: how often the call was made. Of earlier attempts there is a note each, with their peer and error.
        retry_after: seconds after which the server wants to see the call again; None if it did not say so.
    """

    default_code: ClassVar[Code] = Code.UNKNOWN
    attempts: int = 1
    retry_after: float | None = None

    def __init__(
        self,
        message: str = "",
        *,
        code: Code | None = None,
        may_have_run: bool = False,
        peer: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code: Code = self.default_code if code is None else code
        self.may_have_run: bool = may_have_run
        self.peer: str | None = peer

    @property
    def message(self) -> str:
        """The sentence that says what happened, where, and what to do."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        where = f" (peer {self.peer})" if self.peer and self.peer not in self.message else ""
        return f"{self.message}{where}"

    def __reduce__(self) -> tuple[Any, ...]:
        # The keyword arguments live in __dict__, which pickle and copy restore after calling the class.
        return (type(self), self.args, self.__dict__)


class RemoteError(RpcError):
    """The handler's own failure. It ran.

    A handler may raise one on purpose to choose the code and the text that its caller sees::

        raise RemoteError("no such sku", code=Code.NOT_FOUND)

    Any other exception that the contract does not name under `raises=` arrives as a RemoteError too, with a
    neutral text and an `error_id` that finds the traceback in the server's log.

    Attributes:
        name: the exception's name in the contract, or "" where it was not declared.
        data: the declared exception's fields or arguments as plain values, or None.
        error_id: what to search for in the server's log; "" where nothing is to be found: the caller was told all there
            is, or the log has had enough lines in that second.
    """

    def __init__(
        self,
        message: str = "",
        *,
        code: Code | None = None,
        may_have_run: bool = True,
        peer: str | None = None,
        name: str = "",
        data: Any = None,
        error_id: str = "",
    ) -> None:
        super().__init__(message, code=code, may_have_run=may_have_run, peer=peer)
        self.name: str = name
        self.data: Any = data
        self.error_id: str = error_id


class Refused(RpcError):
    """The peer declined before it entered the handler: the call surely did not run."""

    default_code = Code.UNAVAILABLE


class Overloaded(Refused):
    """No room for one more call there. Retried transparently, with back-off."""

    default_code = Code.RESOURCE_EXHAUSTED


class Draining(Refused):
    """The peer is going away and takes no new calls. Retried transparently on another connection."""

    default_code = Code.UNAVAILABLE


class Unauthenticated(Refused):
    """The credentials are missing or wrong, or do not hold any more."""

    default_code = Code.UNAUTHENTICATED


class PermissionDenied(Refused):
    """The credentials are known, and this method is not for them."""

    default_code = Code.PERMISSION_DENIED


class Unimplemented(Refused):
    """No such service or method there, or the server left it undone."""

    default_code = Code.UNIMPLEMENTED


class InvalidArgument(Refused):
    """An argument does not fit its declared type; the message names the argument's path, like `b[1].x`."""

    default_code = Code.INVALID_ARGUMENT


class ConnectionFailed(RpcError):
    """The transport failed."""

    default_code = Code.UNAVAILABLE


class ConnectError(ConnectionFailed):
    """A connection could not be made: name, TCP, TLS or HELLO. Nothing ran.

    Attributes:
        permanent: True if trying again cannot help before somebody changes something: the peer speaks another
            protocol or version or no common codec, or its certificate is refused. Waiting calls fail at once then.
    """

    def __init__(
        self,
        message: str = "",
        *,
        code: Code | None = None,
        may_have_run: bool = False,
        peer: str | None = None,
        permanent: bool = False,
    ) -> None:
        super().__init__(message, code=code, may_have_run=may_have_run, peer=peer)
        self.permanent: bool = permanent


class ConnectionLost(ConnectionFailed):
    """The connection ended under the call. `may_have_run` says whether any of the request had been written."""


class PeerUnresponsive(ConnectionLost):
    """The peer gave no sign of life for `interval + timeout`, or took no bytes for `write_timeout`."""


class PoolError(RpcError):
    """The pool could not place the call. Nothing was sent."""

    default_code = Code.UNAVAILABLE


class PoolTimeout(PoolError):
    """No connection or no free place within `acquire_timeout`; `__cause__` is the last dial error, if any."""


class PoolExhausted(PoolError):
    """The waiting queue is full (`max_waiting`)."""

    default_code = Code.RESOURCE_EXHAUSTED


class PoolClosed(PoolError):
    """The pool was closed before or under the call. `may_have_run` is the call's own."""

    default_code = Code.CANCELLED


class CircuitOpen(PoolError):
    """The endpoints have failed too much, and are left alone for a while (`CircuitBreaker`). Did not run."""

    default_code = Code.UNAVAILABLE


class RemoteCancelled(RpcError):
    """The peer stopped the handler: drain, its own scope, or its `max_deadline`.

    `code` is CANCELLED or DEADLINE_EXCEEDED. It is an ordinary error and never a `trio.Cancelled`, which
    belongs to the caller's own scopes alone.
    """

    default_code = Code.CANCELLED


class CodecError(RpcError):
    """A value and its declared type, or its bytes, do not go together.

    Attributes:
        outline: the message without the values in it, for those whom they do not concern; "" if it is the same.
    """

    default_code = Code.INTERNAL
    outline: str = ""


class EncodeError(CodecError):
    """A value cannot be sent: wrong type, out of range, or too large for the peer.

    For an argument nothing was sent. For an item of a stream the call has usually begun: it is stopped, and
    `may_have_run` says so.
    """


class DecodeError(CodecError):
    """What arrived is not what was declared; the message names the path, like `$.items[3].price`.

    Attributes:
        malformed: True if the bytes themselves were refused: they are no value of the codec, or one beyond `max_depth`,
            `max_containers` or `max_values`. False for a value that is not of the declared type.
    """

    malformed: bool = False


class ProtocolError(RpcError):
    """The wire's rules were broken. Always a LocalProtocolError or a RemoteProtocolError."""

    default_code = Code.INTERNAL


class LocalProtocolError(ProtocolError):
    """This side asked for something that the wire does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the wire's rules; its connection is closed."""
