"""Idempotency keys: a call that is made again joins the handler that is already running, or gets what came of it.

A unary request with `idempotency-key` in its metadata runs at most once for its principal, method and key. Its handler
runs in a task of the server and not of the connection that the request came by, so that it outlives that connection.
The calls with its key, the first one included, are *joiners*: each waits for the *run* in its connection's crew, with
its own deadline, and is answered with the very same content.

1. A joiner that is cancelled, or whose deadline passes, goes at once if others are left. The last one cancels the run,
   and is told when that has ended, as with any call.
2. A joiner whose connection is lost may come back: the run goes on for `orphan_window`. Another call with the key that
   joins later is taken for the retry, also if it came before the loss was noticed here: so when that one is cancelled,
   nobody is left.
3. What a run that was not cancelled has returned or raised is kept for `result_window`, and for no longer than there
   is room. A run that was cancelled leaves no result, unless that won the race. Who came while it was ending runs
   anew, once it has ended: never two at a time. But if no caller's wish has stopped it, a *retry* does not run anew,
   unless the method is idempotent: nobody has decided that what ran in part shall run again.
4. The run's scope has the latest deadline of its joiners, and ends with the server's `max_deadline` at the latest,
   counted from its beginning.

A retry is told from a mistake by its arguments: they must be the same bytes, of which a digest is kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol

import attrs
import trio
from trio.lowlevel import (
    Abort,
    Task,
    current_task,
    disable_ki_protection,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from ._conduct import timed
from ._config import ServerLimits
from ._contained import parted
from ._context import CURRENT
from ._crew import Estimate, holds
from ._errors import Draining, InvalidArgument
from ._incoming import Incoming
from ._kept import GIVEN_UP, KEY, PREVIOUS, Answer, Kept, Name, Result, digest_of, name_of
from ._statistics import ServerCounters
from ._timer import Timer

__all__ = ["Once"]

APART = Estimate(eager=False)
"""Of calls with a key, which suspend however their method does: so they tell nothing about it."""


class Runnable(Protocol):
    """What a served method needs to be for this: made by the dispatch."""

    codec: str
    idempotent: bool

    def enter(self, call: Incoming) -> Coroutine[Any, Any, Any]:
        """Decode the arguments and make the handler's coroutine. What it raises did not run."""
        ...

    def result(self, call: Incoming, value: Any) -> Answer:
        """What the handler's result is on the wire."""
        ...

    def failure(self, call: Incoming, exc: BaseException) -> Answer:
        """What the handler's failure is on the wire."""
        ...

    def give(self, call: Incoming, answer: Answer) -> None:
        """Answer the call, whatever its peer can take."""


class Once:
    """The calls with an idempotency key of one server: what runs, and what is kept."""

    def __init__(self, limits: ServerLimits, timer: Timer, counters: ServerCounters) -> None:
        self.nursery: trio.Nursery | None = None
        """The server's, while it runs."""
        self.limits = limits
        self._timer = timer
        self._counters = counters
        self._runs: dict[Name, _Run] = {}
        self._kept = Kept(limits)
        self._due = False
        """The timer will look for what has been kept long enough."""
        self._quiet = trio.lowlevel.ParkingLot()
        self._stopped = ""

    def __repr__(self) -> str:
        return f"<Once: {len(self._runs)} running, {len(self._kept)} results kept in {self._kept.size} bytes>"

    @property
    def running(self) -> int:
        """Handlers of calls with a key, those for whom nobody waits at present included."""
        return len(self._runs)

    @property
    def kept(self) -> int:
        """Results and failures that are kept."""
        return len(self._kept)

    def start(self, call: Incoming, served: Runnable) -> Coroutine[Any, Any, None]:
        """Begin or join what this call asks for; the coroutine waits for its end, and answers.

        Raises InvalidArgument for a key that is none, or was used with other arguments, and what `served.enter` raises:
        nothing has run then.
        """
        name, digest = name_of(call), digest_of(served.codec, call)
        run = self._runs.get(name)
        kept = self.kept_for(name, call) if run is None else None
        known = kept or run
        if known is not None and known.digest != digest:
            raise InvalidArgument(f"this {KEY} was used for {call.method} with other arguments: take a new key")
        call.estimate = APART
        if kept is not None:
            self._counters.replayed += 1
            return _replay(call, served, kept.answer)
        if run is None:
            run = self.begin(name, digest, call, served)
        else:
            self._counters.joined += 1
        return _Joiner(self, run, call, served).wait()

    def begin(self, name: Name, digest: bytes, call: Incoming, served: Runnable) -> _Run:
        """Start the handler, in a task of the server's and in the context of a call like this one."""
        assert self.nursery is not None
        if self._stopped:
            raise Draining(self._stopped)
        work = copy.copy(call)  # What the handler sees: active until it has ended, and not until its connection has.
        work.context = call.connection.base_context.copy()
        work.context.run(CURRENT.set, work)
        coroutine = work.coroutine = served.enter(work)
        work.started, call.place = True, None  # The place is taken until the handler has ended, so `work` has it now.
        run = self._runs[name] = _Run(name, digest, work, self.limits)
        drive = partial(self._drive, run, coroutine, served)
        work.context.run(partial(self.nursery.start_soon, drive, name="trio_rpc handler"))
        return run

    def kept_for(self, name: Name, call: Incoming) -> Result | None:
        """What is kept under this name, for a call like this one."""
        kept = self._kept.find(name)
        return None if kept is not None and kept.answer is GIVEN_UP and PREVIOUS not in call.metadata else kept

    def current(self, name: Name) -> _Run | None:
        """What runs under this name."""
        return self._runs.get(name)

    @enable_ki_protection
    async def _drive(self, run: _Run, coroutine: Coroutine[Any, Any, Any], served: Runnable) -> None:
        answer: Answer | None = None
        value: Any = None
        returned = failed = False
        try:
            with run.scope:
                value = await self._stepped(run.work.method, _unprotected(coroutine))
                returned = True
            if returned:
                answer = served.result(run.work, value)
        except BaseException as exc:
            ending, failure = parted(exc)
            try:
                if failure is not None:
                    answer, failed = served.failure(run.work, failure), True
                if holds(exc, KeyboardInterrupt):
                    raise  # The program's, and not the caller's.
                if ending is not None:
                    raise ending from None  # The server itself is ending by force.
            finally:
                del ending, failure
        finally:
            if answer is not None:
                answer = attrs.evolve(answer, metadata=run.work.take_reply_metadata())
            # How a cancelled handler failed in its clean-up is no answer for those who come later.
            final = answer is not None and not (failed and run.scope.cancel_called)
            given_up = run.ending and not (final or run.unwanted or served.idempotent)
            self._end(run, answer, GIVEN_UP if given_up else answer if final else None, final=final)

    def _stepped(self, method: str, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        stall_after = self.limits.stall_warn_after
        return coroutine if stall_after is None else timed(coroutine, method, stall_after)

    def _end(self, run: _Run, answer: Answer | None, kept: Answer | None, *, final: bool) -> None:
        del self._runs[run.name]
        if kept is not None:
            self._kept.keep(run.name, run.digest, kept, trio.current_time())
            self._set_timer()
        run.end(answer, final=final)
        if not self._runs:
            self._quiet.unpark_all()

    def _set_timer(self) -> None:
        if len(self._kept) and not self._due:
            self._due = True
            self._timer.at(self._kept.next_end, self._on_due)

    def _on_due(self, _lateness: float) -> None:
        self._due = False
        self._kept.forget_old(trio.current_time())
        self._set_timer()

    # -- the end of all of it --------------------------------------------------------------------------------------

    async def wait_quiet(self) -> None:
        """Wait until nothing runs here, whether anybody waits for it or not."""
        while self._runs:
            await self._quiet.park()

    def stop(self, reason: str) -> None:
        """Cancel every handler, and begin no further ones."""
        self._stopped = reason
        for run in self._runs.values():
            run.work.by_peer = reason
            run.scope.cancel()


class _Run:
    """One handler under way, and who waits for it."""

    __slots__ = (
        "_cut_at",
        "_orphan_window",
        "answer",
        "claim",
        "digest",
        "final",
        "joiners",
        "latest",
        "name",
        "over",
        "scope",
        "unwanted",
        "work",
    )

    def __init__(self, name: Name, digest: bytes, work: Incoming, limits: ServerLimits) -> None:
        self.name: Name = name
        self.digest: bytes = digest
        self.work: Incoming = work
        """The call as its handler sees it."""
        self._orphan_window: float = limits.orphan_window
        longest = math.inf if limits.max_deadline is None else limits.max_deadline
        self._cut_at: float = trio.current_time() + longest
        self.scope: trio.CancelScope = trio.CancelScope(deadline=work.deadline)
        work.scope = self.scope
        self.joiners: dict[_Joiner, None] = {}
        """Who waits for the end, in the order in which they came."""
        self.latest: float = -math.inf
        """The latest deadline of all who joined."""
        self.claim: float = -math.inf
        """Until when one that was lost may come back for it."""
        self.unwanted: bool = False
        """The last who waited has cancelled it, and was not just lost, or stopped by this server."""
        self.over: bool = False
        self.answer: Answer | None = None
        self.final: bool = False
        """The answer is good for those, too, who came when the run was being cancelled."""

    @property
    def ending(self) -> bool:
        """True once it is cancelled, whether it has ended or not."""
        return self.scope.cancel_called

    def enter(self, joiner: _Joiner) -> None:
        """One more waits for the end. If the run goes on, it does so for this one, too."""
        self.joiners[joiner] = None
        if not self.ending:
            self.claim = -math.inf
            self.latest = max(self.latest, joiner.call.deadline)
            self.scope.deadline = min(self.latest, self._cut_at)

    def leave(self, joiner: _Joiner) -> bool:
        """One waits no longer, if it can be helped; True if it has to, for the end of what it has just cancelled."""
        call, now = joiner.call, trio.current_time()
        if not self.ending:
            if call.ended and next(reversed(self.joiners)) is joiner:
                self.claim = now + self._orphan_window
            del self.joiners[joiner]
            if self.joiners:
                return False
            if self.claim > now:
                self.scope.deadline = min(self.scope.deadline, self.claim)
                return False
            self.work.by_caller, self.work.join_until = True, call.join_until
            self.unwanted = not call.ended and (call.by_caller or not call.by_peer)
            self.scope.cancel()
        self.joiners[joiner] = None
        return True

    def end(self, answer: Answer | None, *, final: bool) -> None:
        """The handler has ended: wake who waits for it."""
        self.over, self.answer, self.final = True, answer, final
        work = self.work
        if work.place is not None:
            work.place.leave(work)
        work.ended, work.coroutine, work.scope, work.place = True, None, None, None
        work.context = work.connection.base_context
        joiners, self.joiners = self.joiners, {}
        for joiner in joiners:
            joiner.wake()


class _Joiner:
    """One call with a key, on its way to an answer."""

    __slots__ = ("_anew", "_once", "_raise_cancel", "_served", "_task", "call", "run")

    def __init__(self, once: Once, run: _Run, call: Incoming, served: Runnable) -> None:
        self.call: Incoming = call
        self._once: Once = once
        self._served: Runnable = served
        self._task: Task | None = None
        self._raise_cancel: Callable[[], object] | None = None
        """What Trio cancelled this one with, if it has to wait for the run's end all the same."""
        self._join(run)

    def _join(self, run: _Run) -> None:
        self.run: _Run = run
        self._anew: bool = run.ending
        """The run was being cancelled before this one came: its end is awaited, and then another one begun."""
        run.enter(self)
        if not self._anew:
            self.call.payload, self.call.blobs = b"", ()

    async def wait(self) -> None:
        """Wait for the run's end, and answer with it."""
        call = self.call
        while True:
            if not self.run.over:
                self._task = current_task()
                await wait_task_rescheduled(self._abort)
            run = self.run
            if run.answer is not None and (run.final or not self._anew) and not call.ended:
                self._served.give(call, run.answer)
            elif self._raise_cancel is not None:
                self._raise_cancel()
            elif self._anew:
                await trio.lowlevel.checkpoint_if_cancelled()  # Nothing is begun for one who has gone meanwhile.
                again = self._once.current(run.name)  # Another one may have been quicker.
                kept = self._once.kept_for(run.name, call)
                if again is not None or kept is None:
                    self._join(again or self._once.begin(run.name, run.digest, call, self._served))
                    continue
                self._served.give(call, kept.answer)
            else:
                call.cut = True  # By the first one's `max_deadline`, before this one's own.
                call.cancelled()
            return

    def wake(self) -> None:
        """The run is over."""
        task, self._task = self._task, None
        if task is not None:
            reschedule(task)

    def _abort(self, raise_cancel: Any) -> Abort:
        """Cancelled by its caller, its deadline or its connection's end."""
        if self.run.leave(self):
            self._raise_cancel = raise_cancel
            return Abort.FAILED
        self._task = None
        return Abort.SUCCEEDED


async def _replay(call: Incoming, served: Runnable, answer: Answer) -> None:
    served.give(call, answer)


@disable_ki_protection
async def _unprotected(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine
