"""Which endpoints fail far more than the others and get no calls for a while: a pure decision, with the clock passed in.

gRPC's A50, which is Envoy's outlier detection. Three things eject: failures in a row, at once; and with each sweep, a
success rate far below the mean, or a share of failures that is too high whatever the others do. An ejection ends by
itself: the next one lasts longer, and each sweep that sees the endpoint in use again takes one step of that back.

Two departures from A50. An ejection ends on time, not with the next sweep. And a low success rate must also be beyond
what chance explains: where every call fails with the same small probability, one of ten endpoints is 1.9 deviations
below the mean in one sweep out of four.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from ._policies import OutlierEjection

__all__ = ["Ejector", "Tally", "panics"]

CHANCE = 3.0
"""Standard errors of its own count that an endpoint's success rate must be below the mean of all."""


def panics(left: int, total: int, panic: float) -> bool:
    """Whether so few of `total` endpoints are `left` that ejection is to be ignored: less than a share of `panic`.

    When nearly all seem bad, the fault is elsewhere, and the few that are left could not bear all calls.
    """
    return left < panic * total


class Tally:
    """What is counted of one endpoint since the last sweep, and its ejections."""

    __slots__ = ("failures", "in_a_row", "multiplier", "successes", "until")

    successes: int
    failures: int
    in_a_row: int
    multiplier: int
    until: float

    def __init__(self) -> None:
        self.successes = self.failures = 0
        self.in_a_row = 0
        self.multiplier = 0
        """How many times the base time the latest ejection took, less one for each healthy sweep since."""
        self.until = -math.inf
        """When the latest ejection ends."""

    @property
    def calls(self) -> int:
        """How many were counted."""
        return self.successes + self.failures

    @property
    def rate(self) -> float:
        """The share of successes among them. There is at least one call."""
        return self.successes / self.calls

    def clear(self) -> None:
        """Begin to count anew."""
        self.successes = self.failures = 0


class Ejector:
    """The judge of all endpoints of one pool."""

    __slots__ = ("_config", "_swept_at")

    _swept_at: float

    def __init__(self, config: OutlierEjection) -> None:
        self._config = config
        self._swept_at = -math.inf

    def ejected(self, tally: Tally, now: float) -> bool:
        """Whether this endpoint is to get no calls."""
        return now < tally.until

    def restore(self, tally: Tally, now: float) -> None:
        """End its ejection early, as it is known to be well again."""
        tally.until = min(tally.until, now)

    def note(self, tally: Tally, failed: bool, now: float, everyone: Collection[Tally]) -> bool:
        """Count a call that ended. True: that made too many failures in a row, and the endpoint is ejected now.

        What ends while it is ejected was begun before, or in a panic, and does not count.
        """
        if self.ejected(tally, now):
            return False
        if not failed:
            tally.successes += 1
            tally.in_a_row = 0
            return False
        tally.failures += 1
        tally.in_a_row += 1
        if self._config.consecutive is None or tally.in_a_row < self._config.consecutive:
            return False
        tally.in_a_row = 0  # Where the cap forbids it now, the next one who is as bad should not have to ask each time.
        return self._eject(tally, now, everyone)

    def sweep(self, everyone: Collection[Tally], now: float) -> list[Tally]:
        """Compare all, after each interval; return those that are ejected now, the worst first."""
        outliers = [tally for tally in self._outliers(everyone) if not self.ejected(tally, now)]
        outliers.sort(key=lambda tally: tally.rate)
        ejected = [tally for tally in outliers if self._eject(tally, now, everyone)]
        for tally in everyone:
            if tally.until <= self._swept_at:  # It was in use for the whole interval.
                tally.multiplier = max(0, tally.multiplier - 1)
            tally.clear()
        self._swept_at = now
        return ejected

    def _eject(self, tally: Tally, now: float, everyone: Collection[Tally]) -> bool:
        """Eject it if the cap allows one more."""
        config = self._config
        most = max(1, int(config.max_share * len(everyone) + 1e-9))  # 0.29 * 100 is a little less than 29
        if len(everyone) < 2 or sum(self.ejected(other, now) for other in everyone) >= most:
            return False
        tally.multiplier += 1
        tally.until = now + min(config.base_time * tally.multiplier, max(config.base_time, config.max_time))
        tally.in_a_row = 0
        return True

    def _outliers(self, everyone: Collection[Tally]) -> Iterable[Tally]:
        config = self._config
        found: dict[Tally, None] = {}  # in the order of `everyone`, so that the same counts eject the same ones
        if config.deviations is not None:
            busy = [tally for tally in everyone if tally.calls >= config.deviations_calls]
            if len(busy) >= config.min_endpoints:
                found.update(dict.fromkeys(_deviating(busy, config.deviations)))
        if config.failure_share is not None:
            busy = [tally for tally in everyone if tally.calls >= config.failure_calls]
            if len(busy) >= config.min_endpoints:
                failing = (tally for tally in busy if tally.failures >= config.failure_share * tally.calls)
                found.update(dict.fromkeys(failing))
        return found


def _deviating(busy: Collection[Tally], deviations: float) -> Iterable[Tally]:
    mean = sum(tally.rate for tally in busy) / len(busy)
    spread = math.sqrt(sum((tally.rate - mean) ** 2 for tally in busy) / len(busy))
    for tally in busy:
        chance = math.sqrt(mean * (1 - mean) / tally.calls)
        if tally.rate < mean - max(deviations * spread, CHANCE * chance):
            yield tally
