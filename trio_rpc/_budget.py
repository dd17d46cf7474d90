"""What the attempts beyond the first may cost, for all calls of one pool together: pure, with time and counts given.

Two brakes, so that an outage is not answered with several times the load. The *deposits* are Finagle's `RetryBudget`:
each call deposits a part of a further attempt, which can be drawn on for some time, and a few a second are free. The
*throttle* is gRPC's (A6): a bucket that failures empty and successes fill, and which has to be over half full.
Retries and hedges draw on the same.
"""

from __future__ import annotations

import math

from ._policies import RetryBudget, RetryThrottle

__all__ = ["Budget", "Deposits", "Throttle"]

SLICES = 10
"""Parts of the window, of which the oldest is forgotten as a whole (Finagle: 10)."""
PRECISION = 6
"""Decimal places: ten times a tenth is to be one."""


class Deposits:
    """At most `ratio` of the calls of the last `window` seconds, and `per_second` times these seconds, are drawn.

    Nobody reports calls here, as that would cost each call something. Who wants to draw says how many calls there have
    been since the beginning; those since the last look are taken to have been spread evenly.

    Args:
        calls: those of before, which deposit nothing.
    """

    def __init__(self, config: RetryBudget, calls: int, now: float) -> None:
        self._ratio = config.ratio
        self._reserve = config.per_second * config.window
        self._slice = config.window / SLICES
        self._seen = calls
        self._looked_at = now
        self._newest = self._number(now)
        self._balance = [0.0] * SLICES
        """Deposited and not drawn, in each of the latest slices of time; less than nothing where the reserve was drawn."""

    def draw(self, calls: int, now: float) -> bool:
        """Pay for one more attempt; `calls` have been made so far. False: there is nothing left."""
        self._forget_old(now)
        self._deposit(calls - self._seen, now)
        self._seen, self._looked_at = calls, now
        if round(self._reserve + sum(self._balance), PRECISION) < 1:
            return False
        self._balance[self._newest % SLICES] -= 1
        return True

    def _number(self, time: float) -> int:
        return math.floor(time / self._slice)

    def _forget_old(self, now: float) -> None:
        newest = self._number(now)
        for number in range(max(self._newest, newest - SLICES) + 1, newest + 1):
            self._balance[number % SLICES] = 0.0
        self._newest = newest

    def _deposit(self, calls: int, now: float) -> None:
        """Spread over the slices since the last look. What falls in forgotten ones is forgotten as well."""
        elapsed = now - self._looked_at
        if not elapsed:
            self._balance[self._newest % SLICES] += self._ratio * calls
            return
        for number in range(max(self._number(self._looked_at), self._newest - SLICES + 1), self._newest + 1):
            begin, end = max(self._looked_at, number * self._slice), min(now, (number + 1) * self._slice)
            self._balance[number % SLICES] += self._ratio * calls * max(0.0, end - begin) / elapsed


class Throttle:
    """gRPC's bucket of tokens: a failure takes one, a success brings `ratio` of one back."""

    def __init__(self, config: RetryThrottle) -> None:
        self.tokens: float = config.tokens
        self._full = config.tokens
        self._ratio = config.ratio

    @property
    def holds(self) -> bool:
        """True while no further attempt is to be made: the bucket is not over half full."""
        return self.tokens <= self._full / 2

    def note_failure(self) -> None:
        """A call failed in a way that another attempt might help, or its server wants no other."""
        self.tokens = max(0.0, self.tokens - 1)

    def note_success(self) -> None:
        """A call had a result."""
        self.tokens = min(self._full, round(self.tokens + self._ratio, PRECISION))


class Budget:
    """Both brakes of one caller; either may be missing.

    Deposits are counted from the first failure on, so that a caller that never has one never reads the clock for them.
    """

    def __init__(self, budget: RetryBudget | None, throttle: RetryThrottle | None) -> None:
        self._config = budget
        self._deposits: Deposits | None = None
        self._throttle = None if throttle is None else Throttle(throttle)

    def refuses(self, calls: int, now: float, *, throttled: bool = True) -> str:
        """Pay for one more attempt; "" if that could be done, else why not. `calls` have been made so far.

        `throttled=False`: it replaces one that met no failure of a handler or a server, and is no business of the
        throttle's.
        """
        if throttled and self._throttle is not None and self._throttle.holds:
            return f"the throttle holds retries back: {self._throttle.tokens:g} tokens are left"
        if self._config is None:
            return ""
        if self._deposits is None:
            self._deposits = Deposits(self._config, calls - 1, now)
        return "" if self._deposits.draw(calls, now) else "the retry budget is spent"

    def note_failure(self) -> None:
        """A call failed in a way that another attempt might help, or its server wants no other."""
        if self._throttle is not None:
            self._throttle.note_failure()

    def note_success(self) -> None:
        """A call had a result."""
        if self._throttle is not None:
            self._throttle.note_success()
