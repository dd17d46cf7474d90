"""How a call's end becomes a result or an exception, and whether it may be tried again: pure decisions in one place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import codecs
from ._calls import Outgoing
from ._errors import (
    Code,
    CodecError,
    ConnectionLost,
    DecodeError,
    Draining,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    PoolClosed,
    Refused,
    RemoteCancelled,
    RemoteError,
    Unauthenticated,
    Unimplemented,
)
from ._failures import MAX_TEXT, Failures
from ._methods import RemoteMethod
from ._text import readable
from ._util import locate
from .wire import EndReceived, ErrorReceived, Outcome, ResponseReceived

__all__ = [
    "counts_against",
    "error_of",
    "expired_remotely",
    "has_own_end",
    "may_help",
    "pushback",
    "ran_late",
    "surely_not_run",
]

PUSHBACK = "retry-pushback-ms"
"""Metadata of a failure by which a server says when to try again: gRPC's `grpc-retry-pushback-ms`."""
LONGEST_PUSHBACK = 10
"""Digits of a pause that is believed: 115 days."""

FAULTS = {
    Code.UNKNOWN,
    Code.DEADLINE_EXCEEDED,
    Code.RESOURCE_EXHAUSTED,
    Code.INTERNAL,
    Code.UNAVAILABLE,
    Code.DATA_LOSS,
}
"""Codes of which a caller is seldom the cause: Linkerd's 15, 4, 13, 14, and 8 and 2."""

REFUSALS: dict[Code, type[Refused]] = {
    Code.INVALID_ARGUMENT: InvalidArgument,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.UNAVAILABLE: Draining,
    Code.UNIMPLEMENTED: Unimplemented,
}


def error_of(call: Outgoing, method: RemoteMethod) -> BaseException | None:
    """The exception that a call of `method` ended with; None if it has a result, or a stream's ordinary end."""
    error = _error_of(call, method.failures)
    if isinstance(error, DecodeError):
        locate(error, method.name)
    return error


def _error_of(call: Outgoing, failures: Failures) -> BaseException | None:
    terminal = call.terminal
    if call.closing is not None and not has_own_end(call):
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


def has_own_end(call: Outgoing) -> bool:
    """A result or a handler's own failure that won the race against our wish to stop."""
    terminal = call.terminal
    return terminal is not None and not (isinstance(terminal, ErrorReceived) and terminal.outcome is not Outcome.FAILED)


def _failed(error: ErrorReceived, failures: Failures, peer: str) -> BaseException:
    return failures.load(error.code, error.message, error.payload, peer)


def _refused(error: ErrorReceived, _failures: Failures, peer: str) -> BaseException:
    kind, text = REFUSALS.get(error.code), readable(error.message, MAX_TEXT)
    return kind(text, peer=peer) if kind is not None else Refused(text, code=error.code, peer=peer)


def _stopped(error: ErrorReceived, _failures: Failures, peer: str) -> BaseException:
    return RemoteCancelled(readable(error.message, MAX_TEXT), code=error.code, may_have_run=error.started, peer=peer)


_TELL: dict[Outcome, Callable[[ErrorReceived, Failures, str], BaseException]] = {
    Outcome.FAILED: _failed,
    Outcome.REFUSED: _refused,
    Outcome.STOPPED: _stopped,
    Outcome.EXPIRED: _stopped,
    Outcome.CANCELLED: _stopped,
}


def surely_not_run(call: Outgoing, error: BaseException) -> bool:
    """True for what did not run and may do better elsewhere or later: retried whatever the policy says."""
    if error is call.lost:
        return isinstance(error, ConnectionLost) and not error.may_have_run
    # By the outcome as well: a handler may pass on the like of what it was told by others, and then it has run.
    return _outcome(call) is Outcome.REFUSED and isinstance(error, Draining | Overloaded)


def may_help(call: Outgoing, error: BaseException, codes: frozenset[Code]) -> bool:
    """True if another attempt of an idempotent method may do better than one that failed so, and may have run.

    That is a lost connection, a handler that the server stopped, and a handler's own failure with one of `codes`, or
    with an invitation to come again.
    """
    if error is call.lost:
        return isinstance(error, ConnectionLost)
    if isinstance(error, RemoteCancelled):
        return error.code is Code.CANCELLED and _outcome(call) is Outcome.STOPPED
    return isinstance(error, RemoteError) and (error.code in codes or pushback(call) is not None)


def pushback(call: Outgoing) -> float | None:
    """Seconds after which the server wants to see the failed call again; `inf`: never; None: it did not say.

    As in gRPC, what is negative or cannot be read means never.
    """
    metadata = call.terminal.metadata if isinstance(call.terminal, ErrorReceived) else None
    if not metadata or PUSHBACK not in metadata:
        return None
    text = metadata[PUSHBACK]
    readable = text.isdigit() and text.isascii() and len(text) <= LONGEST_PUSHBACK
    return int(text) / 1000 if readable else math.inf


def counts_against(call: Outgoing) -> bool | None:
    """How an ended call speaks of its endpoint: True, a failure; False, a success; None, not at all.

    An answer that is the caller's fault, or that the contract names, is a success. What the caller took back, or gave
    up, says nothing by itself.
    """
    terminal = call.terminal
    if call.lost is not None:
        return True if isinstance(call.lost, ConnectionLost) and call.written else None
    if not isinstance(terminal, ErrorReceived):
        return None if terminal is None else False
    if terminal.outcome in (Outcome.CANCELLED, Outcome.EXPIRED):
        return None
    if terminal.outcome is Outcome.STOPPED and terminal.code is Code.CANCELLED:
        return None
    if terminal.outcome is Outcome.REFUSED and terminal.code is Code.UNAVAILABLE:
        return None
    return terminal.code in FAULTS and not (terminal.outcome is Outcome.FAILED and _is_declared(call, terminal))


def ran_late(call: Outgoing, now: float) -> bool:
    """True for a call that was given up, here or there, as its deadline had passed."""
    outcome = _outcome(call)
    return outcome is Outcome.EXPIRED or (outcome is Outcome.CANCELLED and call.deadline <= now)


def _outcome(call: Outgoing) -> Outcome | None:
    return call.terminal.outcome if isinstance(call.terminal, ErrorReceived) else None


def _is_declared(call: Outgoing, terminal: ErrorReceived) -> bool:
    """True for an exception that the contract names, which its code, mostly UNKNOWN, does not tell."""
    codec = codecs.get(call.connection.protocol.local.codecs[0])
    try:
        return _is_named(codec.decode(terminal.payload, ()))
    except CodecError:
        return False


def _is_named(node: Any) -> bool:
    if not isinstance(node, dict):
        return False
    members = node.get("members")
    if isinstance(members, list) and members:
        return all(map(_is_named, members))
    return bool(node.get("name"))


def expired_remotely(call: Outgoing) -> bool:
    """True if the serving side found the caller's deadline passed: the caller's own scope is about to say so."""
    terminal = call.terminal
    return isinstance(terminal, ErrorReceived) and terminal.outcome is Outcome.EXPIRED and call.deadline != math.inf
