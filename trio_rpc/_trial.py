"""Whether a failed call is tried again, when, and where.

What surely did not run is tried again whatever the policy says, as long as the caller's own deadline allows; a caller
without one is patient for as long as it would have waited for a place. What may have run is tried again only if the
method is idempotent, as the policy says, or if the call has an idempotency key: then the server that may have run it
knows that, and no other does. All attempts share the caller's one deadline, which is its own cancel scope's business.

The delays are gRPC's jittered ladder, which a server's push-back overrules and begins anew. The first attempt that
replaces one that surely did not run is made at once and costs nothing; whatever comes after that is paid for (`_budget`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import trio

from ._backoff import delay_before
from ._calls import Outgoing
from ._errors import ConnectionLost, Overloaded, RpcError
from ._kept import KEY, PREVIOUS
from ._methods import RemoteMethod
from ._options import CallOptions
from ._outcomes import may_help, pushback, surely_not_run
from ._placement import Route
from .codecs._records import put
from .wire import Metadata

if TYPE_CHECKING:
    from ._caller import Caller

__all__ = ["MOST_ATTEMPTS", "Pause", "Trial"]

MOST_ATTEMPTS = 5
"""A policy's larger number acts as this one, as in gRPC."""
MOST_NOTES = 16
"""Attempts that an error tells of, the latest."""


class Pause:
    """A task that sleeps between two attempts."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope

    def begin_anew(self) -> None:
        """Let it make the next attempt at once, because the caller closes and it is to fail."""
        self._scope.cancel()


class Trial:
    """The attempts of one call, and what is known of them together.

    Attributes:
        route: where the next attempt may go; None for anywhere.
        back: where the next attempt had better go, if there is a place: its idempotency key is known there.
        refused: the latest attempt surely did not run, and may do better elsewhere or later.
        free: it is the first of that kind, and not for lack of room: another costs nothing.
        worthwhile: another attempt may do better, and may be made.
        pushback: seconds after which the server wants to see it; `inf`: never; None: it did not say.
    """

    __slots__ = (
        "_caller",
        "_drained",
        "_earlier",
        "_first",
        "_ladder",
        "_made",
        "_may_have_run",
        "_method",
        "_options",
        "_refusals",
        "_runs",
        "_until",
        "_why",
        "back",
        "free",
        "pushback",
        "refused",
        "route",
        "worthwhile",
    )

    def __init__(self, caller: Caller, method: RemoteMethod, options: CallOptions) -> None:
        self._caller, self._method, self._options = caller, method, options
        self.route: Route | None = None if options.routing_key is None else Route(options.routing_key)
        self.back: Route | None = None
        self.refused = self.free = self.worthwhile = False
        self.pushback: float | None = None
        self._made = self._runs = self._refusals = self._ladder = 0
        self._may_have_run = self._drained = False
        self._until: float | None = None
        self._earlier: deque[tuple[int, str, BaseException]] = deque(maxlen=MOST_NOTES)
        self._first: BaseException | None = None
        """What left the call with one server as the only one that may see it again."""
        self._why = ""

    def metadata(self, beside: int = 0) -> Metadata | None:
        """What the next attempt sends along; `beside`: attempts that are under way."""
        runs = self._runs + beside
        return {**self._options.metadata, PREVIOUS: str(runs)} if runs else self._options.metadata

    async def again(self, error: BaseException, call: Outgoing) -> None:
        """Wait until the next attempt is due, or raise `error`, which `call` ended with."""
        caller, delay = self._caller, self.delay(error, call)
        if delay is None:
            caller.take_metadata(call, self._options)  # And not that of an attempt which another one replaces.
            raise self.final(error)
        caller.counters.retries += 1
        if delay:
            with trio.move_on_after(delay) as scope:
                pause = Pause(scope)
                caller.restarting[pause] = None
                try:
                    await trio.sleep_forever()
                finally:
                    del caller.restarting[pause]
                    caller.resumed()

    def delay(self, error: BaseException, call: Outgoing) -> float | None:
        """Seconds to the next attempt, which is paid for; None: `error`, which `call` ended with, is final."""
        self.note(error, call)
        return self.pause(call.deadline)

    def note(self, error: BaseException, call: Outgoing) -> None:
        """An attempt has failed: remember it, and find out what it says of the next one."""
        self._made += 1
        self._earlier.append((self._made, call.connection.address, error))
        self.avoid(call.connection.address)
        self.pushback = pushback(call)
        if isinstance(error, RpcError):
            self._may_have_run = error.may_have_run or self._may_have_run
            error.retry_after = None if self.pushback == math.inf else self.pushback
        self.refused, overloaded = surely_not_run(call, error), isinstance(error, Overloaded)
        self._refusals += self.refused
        self._runs += not self.refused
        self._drained = self.refused and not overloaded
        self.free = self._drained and self._refusals == 1
        allowed = self._options.retry.refusals or self.free
        self.worthwhile = (self.refused and allowed) or (not self.refused and self._may_run_again(error, call))
        if self.pushback == math.inf or (self.worthwhile and not self._drained):
            self._caller.budget.note_failure()

    def _may_run_again(self, error: BaseException, call: Outgoing) -> bool:
        """True for what may have run if another attempt may help, and does no harm; then it is known where."""
        lost, key = error is call.lost and isinstance(error, ConnectionLost), self._options.idempotency_key
        known = lost and key is not None and self._options.metadata.get(KEY) == key  # No interceptor has taken it away.
        home, instance = call.connection.address, call.connection.remote.instance
        self.back = None
        if self._method.idempotent:
            if known:
                self.back = Route(self._options.routing_key, [home], home)
            return may_help(call, error, self._options.retry.codes)
        if not (known and instance):
            return False
        self._first = self._first or error
        self.route = Route(self._options.routing_key, [home], home, instance)
        return True

    def avoid(self, address: str) -> None:
        """Further attempts go elsewhere, where there is an elsewhere that they may go to."""
        if self.route is None:
            self.route = Route()
        if address not in self.route.avoid:
            self.route.avoid.append(address)

    def pause(self, deadline: float) -> float | None:
        """Seconds to the next attempt, which is paid for; None: there is none. `deadline` is the caller's, or `inf`."""
        now = trio.current_time()
        if self._until is None:
            patience = self._options.patience
            self._until = math.inf if patience is None or deadline != math.inf else now + patience
        if not self.worthwhile or self.pushback == math.inf:
            return None
        if not self.refused and self._runs >= min(self._options.retry.attempts, MOST_ATTEMPTS):
            return None
        pause = self._next_pause()
        if now + pause > self._until:
            return None
        return pause if self.free or self.pays(throttled=not self._drained) else None

    def _next_pause(self) -> float:
        if self.pushback is not None:
            self._ladder = 0
            return self.pushback
        if self.free:
            return 0.0
        self._ladder += 1
        return delay_before(self._ladder + 1, self._options.retry.backoff, self._caller.rng)

    def pays(self, *, throttled: bool = True) -> bool:
        """Pay for one more attempt. False: there is nothing left for it, and the error will say so."""
        caller = self._caller
        why = caller.budget.refuses(caller.counters.requests, trio.current_time(), throttled=throttled)
        if why:
            self._why = f"not tried again: {why}"
            caller.counters.throttled += 1
        return not why

    def final(self, error: BaseException, *, beside: int = 0) -> BaseException:
        """Count a call that ends with `error`, and tell the error of the other attempts.

        Where the one server that might see the call again cannot be reached, that is no news for the caller: it gets
        the error that left it with this server. `beside`: attempts that are under way.
        """
        noted = any(failure is error for _, _, failure in self._earlier)
        if self._first is not None and not noted:
            self._why = f"not tried again: {error}"
            error, noted = self._first, True
        attempts = self._made + beside + (not noted)
        if isinstance(error, RpcError):
            error.may_have_run = error.may_have_run or self._may_have_run
            error.attempts = attempts
        notes = list(self._notes(error))
        if notes and isinstance(error, Exception):
            put(error, "__notes__", [*getattr(error, "__notes__", ()), *notes])
        return self._caller.counted(error)

    def _notes(self, final: BaseException) -> Iterator[str]:
        left_out = self._made - len(self._earlier)
        if left_out:
            yield f"of {left_out} earlier attempts nothing is told"
        for number, address, error in self._earlier:
            if error is not final:
                text = error.message if isinstance(error, RpcError) else str(error)
                yield f"attempt {number}, at {address}: {type(error).__name__}: {text}"
        if self._why:
            yield self._why
