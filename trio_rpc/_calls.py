"""The two ends of one call: `Outgoing`, which somebody here awaits, and `Incoming`, which a handler here serves.

Invariants:

1. An id is in its connection's table from before its frame is queued until its terminal frame (or the connection's
   end). So a late reply is told from an invented one, and an id is never reused.
2. Whatever ends a call does so exactly once, synchronously: `Outgoing.finish`, `Connection._end_serving`.
3. A Cancelled is captured when Trio delivers it and raised again, the same object, once the remote handler's end is
   known or `cancel_wait` has passed; at once if its reason is LOST_RACE. It is never made here and never lost.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from ._admission import Place
from ._context import CURRENT, CallContext
from ._crew import Estimate
from ._errors import Code, RpcError
from ._streams import Outbound, ReceiveStream
from .wire import Data, EndReceived, ErrorReceived, Outcome, RequestReceived, ResponseReceived

if TYPE_CHECKING:
    from ._connection import Connection

__all__ = ["LOST_RACE", "Incoming", "Outgoing", "Served"]

NESTED_SHARE = 0.8
"""How much of its caller's `cancel_wait` a cancelled handler may spend on joining its own calls."""

LOST_RACE = "another call has won the race"
"""Reason for `CancelScope.cancel` around calls whose results nobody needs any more: their tasks go on at once.

The handlers are stopped all the same. The calls keep their places until they have ended or `cancel_wait` has passed, so
it is the pool that joins them; a winner need not wait for the slowest loser. Scopes inside of the cancelled one, and
calls nested in it, have the same reason from Trio.
"""

Terminal = ResponseReceived | EndReceived | ErrorReceived


class Outgoing:
    """One call of ours, from its request to its terminal frame."""

    __slots__ = (
        "cancel_wait",
        "cancelled",
        "closing",
        "connection",
        "deadline",
        "id",
        "lost",
        "misfit",
        "on_end",
        "orphan",
        "outbound",
        "parent",
        "received",
        "started_at",
        "stopping",
        "task",
        "terminal",
        "ticket",
    )

    def __init__(
        self,
        connection: Connection,
        request_id: int,
        deadline: float,
        now: float,
        cancel_wait: float,
        parent: CallContext | None,
    ) -> None:
        self.connection: Connection = connection
        self.id: int = request_id
        self.deadline: float = deadline
        """The caller's deadline when the call began; `inf` for none."""
        self.cancel_wait: float = cancel_wait
        self.parent: CallContext | None = parent
        """The call being served here that this one is nested in."""
        self.started_at: float = now
        """When it took its place on the connection."""
        self.ticket: int = 0
        self.task: Task | None = None
        self.received: ReceiveStream[Any] | None = None
        self.outbound: Outbound[Any] | None = None
        self.terminal: Terminal | None = None
        self.lost: RpcError | None = None
        """The connection's end, if that is what ended the call."""
        self.cancelled: BaseException | None = None
        """The Cancelled that Trio delivered while this call was waited for."""
        self.closing: RpcError | None = None
        """What to raise once joined: the pool is closing under the call."""
        self.on_end: Callable[[Outgoing], object] | None = None
        """Told of the end, in the same step; for streams, which nobody awaits as a whole."""
        self.misfit: bool = False
        """Items came for a call that expects one result."""
        self.stopping: bool = False
        """CANCEL has been sent, or need not be: the request was taken back."""
        self.orphan: bool = False
        """`cancel_wait` has passed: nobody waits any more, but the slot is kept until the terminal frame."""

    def __repr__(self) -> str:
        state = "ended" if self.ended else "orphan" if self.orphan else "stopping" if self.stopping else "in flight"
        return f"<Outgoing call {self.id}: {state}>"

    @property
    def ended(self) -> bool:
        """True once nothing more can come."""
        return self.terminal is not None or self.lost is not None

    @property
    def written(self) -> bool:
        """True if any byte of the request may have reached the transport."""
        return self.ticket < self.connection.outbox.taken

    def wait(self) -> Awaitable[object]:
        """Park until the call has ended, or until nobody need wait for it. To be awaited at once.

        What was cancelled by then is in `cancelled`, for the awaiting task to raise if there is nothing else to tell.

        Raises only what Trio delivers at once: Cancelled for a call taken back unsent or not to be joined, and
        KeyboardInterrupt.
        """
        if self.terminal is not None or self.lost is not None or self.orphan:  # Who was in the line has waited there.
            return _nothing()
        self.task = current_task()
        return wait_task_rescheduled(self.abort)  # noqa: ASYNC105 -- a coroutine less: the caller awaits it

    def abort(self, raise_cancel: Any) -> Abort:
        """Trio cancels the waiting task: stop the remote handler first, and let the cancellation go on behind it."""
        task, self.task = self.task, None  # What succeeds here is rescheduled by Trio, and must not be by us.
        if self.connection.withdraw(self):
            return Abort.SUCCEEDED
        joined = True
        try:
            raise_cancel()
        except trio.Cancelled as exc:
            self.cancelled, joined = exc, exc.reason != LOST_RACE
        except BaseException:
            # KeyboardInterrupt: somebody wants out, now. The handler is told, and not waited for.
            self.stop(wait=0.0)
            return Abort.SUCCEEDED
        self.stop()
        if self.orphan:
            return Abort.SUCCEEDED
        if joined:
            self.task = task
        elif task is not None:
            # Woken, and not aborted: what the block of a stream raises must not be hidden by a Cancelled out of its end.
            reschedule(task)
        return Abort.FAILED

    def stop(self, *, leaving: bool = False, wait: float | None = None) -> None:
        """Ask the peer to stop the handler, once; start the clock of `cancel_wait`."""
        if self.stopping or self.ended:
            return
        connection = self.connection
        if connection.withdraw(self):
            # A CANCEL would overtake the request in the queue, and speak of a call that the peer has never seen.
            self.finish(None, RpcError("the call was taken back before it was sent", peer=connection.address))
            return
        self.stopping = True
        now = trio.current_time()
        if wait is None:
            wait = self.cancel_wait
            parent = self.parent
            # A task that outlives its handler is nobody's nested call: no caller waits for it any more.
            if isinstance(parent, Incoming) and parent.active and parent.join_until < math.inf:
                wait = max(0.0, min(wait, parent.join_until - now))
        connection.send_cancel(self, wait, leaving)
        if wait > 0:
            connection.timer.at(now + wait, self._give_up)
        else:
            self._give_up(0.0)

    def _give_up(self, _lateness: float) -> None:
        if not self.ended and not self.orphan:
            self._abandon()
            if self.closing is not None and self.on_end is not None:
                self.on_end(self)
            task, self.task = self.task, None
            if task is not None:
                reschedule(task)

    def _abandon(self) -> None:
        self.orphan = True
        self.connection.note_orphan()

    def finish(self, terminal: Terminal | None, lost: RpcError | None = None) -> None:
        """The call's end, told by the connection's reader or by its loss."""
        self.terminal, self.lost = terminal, lost
        if self.outbound is not None:
            self.outbound.stop()
        if self.on_end is not None:
            self.on_end(self)
        task, self.task = self.task, None
        if task is not None:
            reschedule(task)

    def close(self, error: RpcError) -> None:
        """The pool closes under this call: stop it, and have it raise `error` unless its result comes first."""
        if self.connection.withdraw(self):
            self.finish(None, error)
        else:
            self.closing = error
            self.stop()


async def _nothing() -> None:
    """What is there already need not be waited for."""


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
            self.connection.send_error(
                self, Code.DEADLINE_EXCEEDED, Outcome.EXPIRED, "the deadline had passed on arrival"
            )
            return None
        self.context = self.connection.base_context.copy()
        self.context.run(CURRENT.set, self)
        try:
            self.coroutine = self.served.start(self)
        except Exception as exc:
            self.served.fail(self, exc, started=False)
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
            self.connection.send_error(self, Code.CANCELLED, Outcome.CANCELLED, "cancelled by the caller")
        elif self.by_peer:
            self.connection.send_error(self, Code.CANCELLED, Outcome.STOPPED, self.by_peer)
        elif self.cut:
            text = "the server's max_deadline has cut this call"
            self.connection.send_error(self, Code.DEADLINE_EXCEEDED, Outcome.STOPPED, text)
        else:
            self.connection.send_error(
                self, Code.DEADLINE_EXCEEDED, Outcome.EXPIRED, "the caller's deadline has passed"
            )

    def cut_off(self) -> None:
        """The connection was lost first. Only now is the place free: else one could pile handlers up by reconnecting."""
        place, self.place = self.place, None
        if place is not None:
            place.leave(None)

    # -- what the connection does with it --------------------------------------------------------------------------

    def cancel(self, wait: float, leaving: bool) -> None:
        """The caller wants it stopped, and waits `wait` seconds for its end."""
        self.by_caller = True
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
        if self.scope is not None:
            self.scope.cancel()
        elif not self.started:
            self.connection.send_error(self, Code.UNAVAILABLE, Outcome.REFUSED, reason)
