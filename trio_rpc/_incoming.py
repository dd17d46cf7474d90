"""One call of the peer's, which a handler here serves. Its other end, which somebody awaits, is in `_calls`.

Invariants:

1. It is in its connection's table until its terminal frame is queued, which is when its handler has ended, or until the
   connection has ended. It is answered exactly once, synchronously.
2. Its place is left when the handler has ended, and not before: see `_admission`.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

import trio

from ._admission import Place
from ._config import Limits
from ._context import CURRENT
from ._crew import Estimate, holds
from ._errors import Code, EncodeError
from ._faults import AT_FAULT
from ._streams import CreditGranter, Outbound, ReceiveStream
from .wire import Bytes, Data, Outcome, RequestReceived

if TYPE_CHECKING:
    from ._connection import Connection

__all__ = ["Incoming", "Served"]

NESTED_SHARE = 0.8
"""How much of its caller's `cancel_wait` a cancelled handler may spend on joining its own calls."""
MIN_SLACK = 0.05
"""A handler's scope fires this much (or two round trips) after its caller's, so that the caller's fires first."""
DEADLINE_STEP = 0.01
"""A handler's scope fires at a multiple of this, so that calls with like deadlines share one and a kept scope need not
be set anew for each of them, at 1.5 us each time."""


class Served(Protocol):
    """What a served method needs to be: made by the dispatch, known to the connection by these verbs alone."""

    estimate: Estimate
    limit: float | None
    """How many of its calls may run at once, if it has a limit of its own; `inf` if none of any kind applies to it."""

    def start(self, call: Incoming) -> Coroutine[Any, Any, Any]:
        """Decode the arguments and make the handler's coroutine. What it raises did not run."""
        ...

    def succeed(self, call: Incoming, value: Any) -> None:
        """Answer with the handler's result."""

    def fail(self, call: Incoming, exc: BaseException, *, started: bool) -> None:
        """Answer with a failure."""

    def note_late_failure(self, call: Incoming, exc: BaseException) -> None:
        """The handler failed when there was nobody left to tell."""


class Incoming:
    """One call that a handler here serves, and what `current_call()` gives to it."""

    __slots__ = (
        "_metadata",
        "_reply_metadata",
        "blobs",
        "by_caller",
        "by_peer",
        "connection",
        "context",
        "coroutine",
        "cut",
        "deadline",
        "ended",
        "estimate",
        "expires",
        "id",
        "inbound",
        "join_until",
        "method",
        "outbound",
        "payload",
        "place",
        "scope",
        "served",
        "started",
        "watched",
    )

    def __init__(self, connection: Connection, served: Served, request: RequestReceived, place: Place) -> None:
        self.connection: Connection = connection
        self.place: Place | None = place
        """Its share of the server's limits, until the handler has ended."""
        self.served: Served = served
        self.estimate: Estimate = served.estimate
        self.id: int = request.id
        self.method: str = request.method
        self.payload: Data = request.payload
        self.blobs: Sequence[bytes] = request.blobs
        self._metadata = request.metadata
        self._reply_metadata: dict[str, str | bytes] | None = None
        self.deadline: float = math.inf
        """When the handler's scope fires: the caller's deadline with some slack, or the server's `max_deadline`."""
        self.expires: float = math.inf
        """The caller's deadline, without slack."""
        self.cut: bool = False
        """The server's `max_deadline` is the earlier one."""
        self.inbound: ReceiveStream[Any] | None = None
        self.outbound: Outbound[Any] | None = None
        self.scope: trio.CancelScope | None = None
        self.coroutine: Coroutine[Any, Any, Any] | None = None
        self.context: Context
        self.by_caller: bool = False
        self.by_peer: str = ""
        self.join_until: float = math.inf
        self.started: bool = False
        self.ended: bool = False
        self.watched: bool = False
        """It is to end, and the server's `Conduct` waits for that."""

    def __repr__(self) -> str:
        state = "ended" if self.ended else "running" if self.started else "waiting"
        return f"<Incoming call {self.id} of {self.method}: {state}>"

    # -- what a handler sees ---------------------------------------------------------------------------------------

    @property
    def peer(self) -> Any:
        """The caller."""
        return self.connection.peer

    @property
    def metadata(self) -> dict[str, str | bytes]:
        """What the caller sent along."""
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

    @property
    def reply_metadata(self) -> dict[str, str | bytes]:
        """What goes back with the next frame of the reply."""
        if self._reply_metadata is None:
            self._reply_metadata = {}
        return self._reply_metadata

    @property
    def active(self) -> bool:
        """False once the handler has ended."""
        return not self.ended

    def take_reply_metadata(self) -> dict[str, str | bytes] | None:
        """What has not been sent yet, once."""
        metadata, self._reply_metadata = self._reply_metadata, None
        return metadata

    # -- what the crew does with it: a Job -------------------------------------------------------------------------

    def begin(self) -> Coroutine[Any, Any, Any] | None:
        """Make the handler's coroutine, or answer at once and return None."""
        if self.ended:
            return None
        if self.by_caller:
            self.cancelled()
            return None
        if self.expires != math.inf and self.expires <= trio.current_time():
            self.connection.counters.expired += 1
            self.send_error(Code.DEADLINE_EXCEEDED, Outcome.EXPIRED, "the deadline had passed on arrival")
            return None
        self.context = self.connection.base_context.copy()
        self.context.run(CURRENT.set, self)
        try:
            self.coroutine = self.served.start(self)
        except BaseException as exc:  # Whatever `authorize`, or a type of the program's that is decoded, has raised.
            self.served.fail(self, exc, started=False)
            if holds(exc, KeyboardInterrupt):
                raise
            return None
        self.started = True
        return self.coroutine

    def succeed(self, value: Any) -> None:
        """The handler returned."""
        if self.ended:
            self.cut_off()
        else:
            self.served.succeed(self, value)

    def fail(self, exc: BaseException) -> None:
        """The handler raised."""
        if self.ended:
            self.cut_off()
            self.served.note_late_failure(self, exc)
        else:
            self.served.fail(self, exc, started=True)

    def cancelled(self) -> None:
        """The handler ended by its scope's cancellation: say whose wish that was."""
        if self.ended:
            self.cut_off()
            return
        if self.by_caller:
            self.send_error(Code.CANCELLED, Outcome.CANCELLED, "cancelled by the caller")
        elif self.by_peer:
            self.send_error(Code.CANCELLED, Outcome.STOPPED, self.by_peer)
        elif self.cut:
            text = "the server's max_deadline has cut this call"
            self.send_error(Code.DEADLINE_EXCEEDED, Outcome.STOPPED, text)
        else:
            self.send_error(Code.DEADLINE_EXCEEDED, Outcome.EXPIRED, "the caller's deadline has passed")

    def cut_off(self) -> None:
        """The connection was lost first. Only now is the place free: else one could pile handlers up by reconnecting."""
        place, self.place = self.place, None
        if place is not None:
            place.leave(None)
        if self.watched and self.connection.conduct is not None:
            self.connection.conduct.ended(self)

    # -- what ends it: a terminal frame ----------------------------------------------------------------------------

    def send_response(self, payload: bytes, blobs: Sequence[Bytes]) -> None:
        """Answer with the result. Raises EncodeError, and leaves the call open, if it is too large."""
        connection = self.connection
        frames = connection.protocol.response(self.id, payload, blobs, self.take_reply_metadata())
        connection.end_serving(self)
        connection.outbox.put_message(self.id, frames)

    def send_end(self) -> None:
        """End the stream of items."""
        connection = self.connection
        frame = connection.protocol.end(self.id, self.take_reply_metadata())
        connection.end_serving(self)
        connection.outbox.put_message(self.id, (frame, None))

    def send_error(self, code: Code, outcome: Outcome, text: str, payload: bytes = b"") -> None:
        """End with a failure. Only a call whose handler was never entered is told as not started."""
        connection = self.connection
        frames = connection.protocol.error(
            self.id, code, outcome, self.started, text, payload, self.take_reply_metadata()
        )
        connection.end_serving(self)
        connection.outbox.put_message(self.id, frames)
        if not self.started and code in AT_FAULT and outcome is Outcome.REFUSED:
            connection.faults.charge_aside(text)

    # -- what the connection does with it --------------------------------------------------------------------------

    def set_deadline(self, timeout: float | None, now: float, rtt: float, max_deadline: float | None) -> None:
        """When its scope fires: by the caller's `timeout` or by the server's `max_deadline`, both seconds from `now`."""
        if timeout is not None:
            self.expires = now + timeout
            latest = self.expires + (2 * rtt if rtt > MIN_SLACK / 2 else MIN_SLACK)
            self.deadline = math.ceil(latest / DEADLINE_STEP) * DEADLINE_STEP
        if max_deadline is not None and now + max_deadline < self.deadline:
            self.deadline, self.cut = now + max_deadline, True
            if self.connection.conduct is not None:
                self.connection.conduct.cancelled(self, self.deadline)

    def watch_end(self) -> None:
        """Its handler has been cancelled, or is about to be."""
        if self.started and self.connection.conduct is not None:
            self.connection.conduct.cancelled(self)

    def receive(self, granter: CreditGranter, limits: Limits) -> None:
        """Its request said that a stream of items follows."""
        self.inbound = ReceiveStream(self.id, limits.stream_window, limits.stream_window_items, _undecoded)
        self.inbound.attach(granter, self.id)

    def cancel(self, wait: float, leaving: bool) -> None:
        """The caller wants it stopped, and waits `wait` seconds for its end."""
        self.by_caller = True
        self.watch_end()
        self.join_until = trio.current_time() + wait * NESTED_SHARE
        if leaving and self.outbound is not None and self.outbound.waiting:
            # At its yield: it gets GeneratorExit there and may clean up in peace, while the caller waits.
            self.outbound.stop()
            if self.scope is not None:
                self.scope.deadline = min(self.scope.deadline, self.join_until)
            return
        if self.outbound is not None:
            self.outbound.stop()
        if self.scope is not None:
            self.scope.cancel()
        # Else `begin` will say so. Its slot is taken until then, so that such calls cannot pile up in the backlog.

    def stop(self, reason: str) -> None:
        """This side wants it stopped. What was not begun is refused instead: its caller can go elsewhere with it."""
        self.by_peer = self.by_peer or reason
        self.watch_end()
        if self.scope is not None:
            self.scope.cancel()
        elif not self.started:
            self.send_error(Code.UNAVAILABLE, Outcome.REFUSED, reason)


def _undecoded(payload: Data, blobs: Sequence[bytes]) -> list[Any]:
    raise EncodeError("this method takes no stream")
