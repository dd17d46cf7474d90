"""How a call's end becomes a result or an exception, and whether it may be tried again: pure decisions in one place."""

from __future__ import annotations

import math
from collections.abc import Callable

from ._calls import Outgoing
from ._errors import (
    Code,
    ConnectionLost,
    DecodeError,
    Draining,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    PoolClosed,
    Refused,
    RemoteCancelled,
    Unauthenticated,
    Unimplemented,
)
from ._failures import Failures
from .wire import EndReceived, ErrorReceived, Outcome, ResponseReceived

__all__ = ["error_of", "expired_remotely", "surely_not_run"]

REFUSALS: dict[Code, type[Refused]] = {
    Code.INVALID_ARGUMENT: InvalidArgument,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.UNAVAILABLE: Draining,
    Code.UNIMPLEMENTED: Unimplemented,
}


def error_of(call: Outgoing, failures: Failures) -> BaseException | None:
    """The exception that a call ended with; None if it has a result, or a stream's ordinary end."""
    terminal = call.terminal
    if call.closing is not None and not _has_result(call):
        started = call.written if terminal is None else isinstance(terminal, ErrorReceived) and terminal.started
        return PoolClosed(call.closing.message, may_have_run=started, peer=call.connection.address)
    if call.lost is not None:
        return call.lost
    if call.misfit or (type(terminal) is EndReceived and call.received is None):
        text = "a stream of items came where one result is expected: the contracts differ, or it is one for stream()"
        return DecodeError(text, may_have_run=True, peer=call.connection.address)
    if type(terminal) is ResponseReceived and call.received is not None:
        text = "one result came where a stream of items is expected: the contracts differ, or it is one for call()"
        return DecodeError(text, may_have_run=True, peer=call.connection.address)
    if isinstance(terminal, ErrorReceived):
        return _TELL[terminal.outcome](terminal, failures, call.connection.address)
    return None


def _has_result(call: Outgoing) -> bool:
    """A result or a handler's own failure that won the race against our wish to stop."""
    terminal = call.terminal
    return terminal is not None and not (isinstance(terminal, ErrorReceived) and terminal.outcome is not Outcome.FAILED)


def _failed(error: ErrorReceived, failures: Failures, peer: str) -> BaseException:
    return failures.load(error.code, error.message, error.payload, peer)


def _refused(error: ErrorReceived, _failures: Failures, peer: str) -> BaseException:
    kind = REFUSALS.get(error.code)
    return kind(error.message, peer=peer) if kind is not None else Refused(error.message, code=error.code, peer=peer)


def _stopped(error: ErrorReceived, _failures: Failures, peer: str) -> BaseException:
    return RemoteCancelled(error.message, code=error.code, may_have_run=error.started, peer=peer)


_TELL: dict[Outcome, Callable[[ErrorReceived, Failures, str], BaseException]] = {
    Outcome.FAILED: _failed,
    Outcome.REFUSED: _refused,
    Outcome.STOPPED: _stopped,
    Outcome.EXPIRED: _stopped,
    Outcome.CANCELLED: _stopped,
}


def surely_not_run(error: BaseException) -> bool:
    """True for what did not run and may do better elsewhere or later: retried whatever the policy says."""
    if isinstance(error, Draining | Overloaded):
        return True
    return isinstance(error, ConnectionLost) and not error.may_have_run


def expired_remotely(call: Outgoing) -> bool:
    """True if the serving side found the caller's deadline passed: the caller's own scope is about to say so."""
    terminal = call.terminal
    return isinstance(terminal, ErrorReceived) and terminal.outcome is Outcome.EXPIRED and call.deadline != math.inf
