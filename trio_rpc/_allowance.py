"""So many of something at once, and so many a second beyond: a bucket of tokens, with the clock passed in."""

from __future__ import annotations

__all__ = ["Allowance"]

ROUNDING = 1e-6
"""Less than this of a token is nothing."""


class Allowance:
    """A bucket of `most` tokens, full at first. How fast it fills is told with each use, as that may change."""

    __slots__ = ("_at", "_left", "_most")

    def __init__(self, most: float, now: float) -> None:
        self._most = self._left = float(most)
        self._at = now

    def spend(self, now: float, rate: float) -> bool:
        """One more, at `rate` a second; False if that was one too many, for which others will wait longer."""
        self._refill(now, rate)
        self._left -= 1
        return self._left >= 0

    def delay(self, now: float, rate: float) -> float:
        """How long until there is one to spend; 0 if there is."""
        self._refill(now, rate)
        missing = 1 - self._left
        return missing / rate if missing > ROUNDING else 0.0  # Else a timer could be set to this very moment, for ever.

    def _refill(self, now: float, rate: float) -> None:
        self._left = min(self._most, self._left + rate * (now - self._at))
        self._at = now
