"""One call of ours, which somebody here awaits. Its other end, which a handler serves, is in `_incoming`.

Invariants:

1. An id is in its connection's table from before its frame is queued until its terminal frame (or the connection's
   end). So a late reply is told from an invented one, and an id is never reused.
2. Whatever ends a call does so exactly once, synchronously, with `finish`.
3. A Cancelled is captured when Trio delivers it and raised again, the same object, once the remote handler's end is
   known or `cancel_wait` has passed; at once if its reason is LOST_RACE. It is never made here and never lost.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from ._context import CallContext
from ._errors import ConnectionLost, RpcError
from ._incoming import Incoming
from ._streams import Outbound, ReceiveStream
from .wire import EndReceived, ErrorReceived, ResponseReceived

if TYPE_CHECKING:
    from ._connection import Connection

__all__ = ["LOST_RACE", "Outgoing"]

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
        connection.outbox.stop_sending(self.id)  # What is left of its request.
        connection.outbox.put_control(connection.protocol.cancel(self.id, wait, leaving=leaving))
        if wait > 0:
            connection.timer.at(now + wait, self._give_up)
        else:
            self._give_up(0.0)

    def send_end_of_items(self) -> None:
        """Half-close: no more items from the caller's side."""
        if not self.ended and not self.stopping:
            self.connection.outbox.put_message(self.id, (self.connection.protocol.end(self.id), None))

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

    def lose(self, cause: RpcError) -> None:
        """The connection's end: one cause, told to each call with that call's own `may_have_run`."""
        kind = type(cause) if isinstance(cause, ConnectionLost) else ConnectionLost
        error = kind(cause.message, may_have_run=self.written, peer=self.connection.address)
        error.__cause__ = cause if cause.__cause__ is None else cause.__cause__
        self.finish(None, error)

    def close(self, error: RpcError) -> None:
        """The pool closes under this call: stop it, and have it raise `error` unless its result comes first."""
        if self.connection.withdraw(self):
            self.finish(None, error)
        else:
            self.closing = error
            self.stop()


async def _nothing() -> None:
    """What is there already need not be waited for."""
