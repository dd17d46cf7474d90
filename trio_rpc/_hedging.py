"""One unary call, made more than once before the first answer is there; the first result wins.

The rules are gRPC's (A6). The next attempt is begun after each `delay` without an answer, or as soon as one has failed
in a way that another may not; what no other attempt would help ends the call; a server's push-back puts the next one
off, or is the end of them. Those that surely did not run are replaced, as for any call (`_trial`), and are no part of
the number of attempts. A hedge goes only where there is a place for it at once: it waits in no line.

There are no tasks in here. Each step is synchronous, in the reader that saw an attempt's end or in the timer, and the
caller's own task parks once. The losers are stopped in the step that decides, and keep their places on their
connections until they have ended or `cancel_wait` has passed: the pool joins them, and the winner does not wait. If
the caller is cancelled, it joins all that are under way, like any call.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from ._calls import LOST_RACE, Outgoing
from ._errors import RpcError
from ._methods import RemoteMethod
from ._options import CallOptions
from ._outcomes import error_of, expired_remotely, has_own_end
from ._policies import HedgePolicy
from ._timer import Moment
from ._trial import MOST_ATTEMPTS, Trial
from ._waiting import Attempt

if TYPE_CHECKING:
    from ._caller import Caller

__all__ = ["HedgedCall"]


class HedgedCall:
    """One call, and its attempts. `run` is awaited once."""

    def __init__(self, caller: Caller, method: RemoteMethod, options: CallOptions, policy: HedgePolicy) -> None:
        self._caller, self._method, self._options = caller, method, options
        self._delay = policy.delay
        self._left = min(policy.attempts, MOST_ATTEMPTS) - 1
        self._owed = False
        """The next attempt replaces one that did not run: it is paid for, or free."""
        self._trial = Trial(caller, method, options)
        self._attempt: Attempt | None = None
        self._live: dict[Outgoing, None] = {}
        """Attempts that are under way, the oldest first."""
        self._waiting: Attempt | None = None
        """One that waits for a place; then no other is under way."""
        self._due: Moment | None = None
        self._task: Task | None = None
        self._over = False
        self._call: Outgoing | None = None
        self._error: BaseException | None = None
        self._beside = 0
        self._cancelled: BaseException | None = None
        self._joined: list[Outgoing] = []

    async def run(self, attempt: Attempt) -> Any:
        """Make the call, beginning with this attempt. Returns the first result; raises like any call."""
        attempt.on_start, attempt.on_failure = self._started, self._fail
        self._attempt = attempt
        self._begin(attempt, hedge=False)
        if not self._over:
            self._task = current_task()
            await wait_task_rescheduled(self._abort)
        if self._cancelled is not None:
            await self._join(self._cancelled)
        call, error = self._call, self._error
        if call is not None:
            self._caller.take_metadata(call, self._options)
        if call is not None and error is None:
            return self._caller.result(self._method, call)
        assert error is not None
        if call is not None and expired_remotely(call):
            await trio.sleep_until(call.deadline)  # As the caller's own scope is about to fire.
        raise self._trial.final(error, beside=self._beside)

    # -- attempts ----------------------------------------------------------------------------------------------------

    def _begin(self, attempt: Attempt, *, hedge: bool) -> None:
        counters = self._caller.counters
        try:
            connection = self._caller.pick(attempt.route)
            if connection is None and self._live:
                self._schedule_next()
            elif not hedge or self._trial.pays():
                counters.hedges += hedge
                if connection is None:
                    self._waiting = attempt
                    self._caller.join(attempt)
                else:
                    attempt.start(connection, trio.current_time())
        except RpcError as exc:
            self._fail(exc)

    def _started(self, call: Outgoing) -> None:
        """An attempt has a place, at once or after it has waited for one."""
        self._waiting = None
        self._live[call] = None
        call.on_end = self._ended
        self._trial.avoid(call.connection.address)
        self._schedule_next()

    def _schedule_next(self) -> None:
        if self._left:
            self._schedule(self._delay)

    def _schedule(self, delay: float) -> None:
        """Begin the next attempt after `delay`, and not when that was to be before."""
        self._unschedule()
        self._due = self._caller.timer.at(trio.current_time() + delay, lambda _late: self.begin_anew())
        if not self._under_way:
            self._caller.restarting[self] = None

    def _unschedule(self) -> None:
        due, self._due = self._due, None
        if due is not None:
            self._caller.timer.forget(due)
        if self in self._caller.restarting:
            del self._caller.restarting[self]
            self._caller.resumed()

    def begin_anew(self) -> None:
        """Make the next attempt; by the timer, or at once because the caller closes and it is to fail."""
        self._unschedule()
        assert self._attempt is not None
        attempt = self._attempt.again()
        attempt.early = False
        attempt.metadata, attempt.route = self._trial.metadata(len(self._live)), self._trial.route
        if self._owed:
            self._owed = False
            self._caller.counters.retries += 1
            self._begin(attempt, hedge=False)
        elif self._left:
            self._left -= 1
            self._begin(attempt, hedge=True)
        self._decide_if_done()

    @property
    def _under_way(self) -> bool:
        return bool(self._live) or self._waiting is not None

    # -- ends --------------------------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        """An attempt has not become a call. That decides nothing as long as others are under way."""
        if not self._live:
            self._decide(None, error)

    def _ended(self, call: Outgoing) -> None:
        """An attempt has ended, in the step of whoever saw that."""
        self._live.pop(call, None)
        if self._over:
            return
        error = error_of(call, self._method)
        if error is None:
            self._decide(call, None)
            return
        self._trial.note(error, call)
        if not self._trial.worthwhile:
            self._decide(call, error)
            return
        self._call, self._error = call, error
        self._consider_next(call.deadline)
        self._decide_if_done()

    def _consider_next(self, deadline: float) -> None:
        """An attempt has failed in a way that another may not: begin the next one now, or as the server wishes."""
        trial = self._trial
        if trial.pushback == math.inf:
            self._left, self._owed = 0, False
            self._unschedule()
        elif trial.free or (trial.refused and not self._left):
            pause = trial.pause(deadline)
            if pause is not None:
                self._owed = True
                self._schedule(pause)
        elif self._left:
            self._schedule(trial.pushback or 0.0)

    def _decide_if_done(self) -> None:
        if not (self._over or self._under_way or self._due is not None):
            self._decide(self._call, self._error)

    def _decide(self, call: Outgoing | None, error: BaseException | None) -> None:
        """The end: this result, or this error; the others are stopped."""
        self._call, self._error = call, error
        self._beside = len(self._live)
        if isinstance(error, RpcError) and any(other.written for other in self._live):
            error.may_have_run = True  # Whatever this attempt came to: one beside it may be running.
        self._finish()
        task, self._task = self._task, None
        if task is not None:
            reschedule(task)

    def _finish(self, wait: float | None = None) -> None:
        """Begin nothing more, and stop what is under way. Idempotent."""
        self._over = True
        self._unschedule()
        if self._waiting is not None:
            self._waiting.leave()
        for call in list(self._live):
            call.stop(wait=wait)

    # -- cancellation ------------------------------------------------------------------------------------------------

    def _abort(self, raise_cancel: Any) -> Abort:
        """Trio cancels the caller: stop all handlers first, and let the cancellation go on behind them."""
        task, self._task = self._task, None
        joined = True
        try:
            raise_cancel()
        except trio.Cancelled as exc:
            self._cancelled, joined = exc, exc.reason != LOST_RACE
        except BaseException:
            self._finish(wait=0.0)  # KeyboardInterrupt: nobody waits.
            return Abort.SUCCEEDED
        under_way = list(self._live)
        self._finish()
        self._joined = [call for call in under_way if not (call.ended or call.orphan)]
        if not (joined and self._joined):
            return Abort.SUCCEEDED
        self._joined[0].task = task
        return Abort.FAILED

    async def _join(self, cancelled: BaseException) -> None:
        """Wait for all that was under way, each within its `cancel_wait`. What won the race against us counts."""
        for call in self._joined:
            await call.wait()
        ends = [(call, error_of(call, self._method)) for call in self._joined if has_own_end(call)]
        if not ends:
            raise cancelled
        self._call, self._error = next((end for end in ends if end[1] is None), ends[0])  # A result, if there is one.
        self._beside = len(self._joined) - 1
