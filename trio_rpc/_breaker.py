"""When an endpoint is left alone after too many failures: a pure decision, with clock and randomness passed in.

The circuit of an endpoint is closed while it works. Failures open it: it gets no calls. After a while it is half-open:
it gets one call, the probe, and nothing else until that has ended. A success closes the circuit, a failure opens it
for twice as long, and a probe that says nothing (cancelled, say) makes room for the next. So does one that has not
ended after as long as the circuit was open: a stream may never end, and an endpoint must not wait for that.

A call speaks only of the time in which it was begun: an answer to one that was begun before the circuit opened says
nothing about the probe, and must neither close the circuit nor let a second probe go.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

from ._backoff import delay_before
from ._policies import CircuitBreaker

__all__ = ["Breaker", "Circuit"]

BUCKETS = 10
"""Steps in which the window slides."""
LEAST_PATIENCE = 5.0
"""Seconds that a probe has at least."""


class Circuit(enum.Enum):
    """Whether an endpoint may be called."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


class Breaker:
    """The circuit of one endpoint.

    Who calls asks `allows`, says `begin` in the same step, just before the call begins, and `note` when it has ended.
    Calls that go there without asking are told too, and are no probes.
    """

    __slots__ = (
        "_closed_at",
        "_config",
        "_in_a_row",
        "_open_for",
        "_openings",
        "_probe_at",
        "_probe_before",
        "_rng",
        "_until",
        "_window",
    )

    _until: float | None
    _probe_at: float | None
    _window: Window | None

    def __init__(self, config: CircuitBreaker, rng: Callable[[], float]) -> None:
        self._config, self._rng = config, rng
        self._openings = 0
        self._until = None
        self._open_for = 0.0
        self._probe_at = None
        self._probe_before = math.inf
        self._closed_at = -math.inf
        self._in_a_row = 0
        self._window = None if config.failure_share is None else Window(config.window)

    @property
    def next_at(self) -> float | None:
        """From when on a probe may go, be it past or to come; None while the circuit is closed."""
        return self._until

    def state(self, now: float) -> Circuit:
        """Where it stands."""
        if self._until is None:
            return Circuit.CLOSED
        return Circuit.OPEN if now < self._until and self._probe_at is None else Circuit.HALF_OPEN

    def allows(self, now: float) -> bool:
        """Whether a call may go there."""
        return self._until is None or now >= self._until

    def begin(self, now: float) -> None:
        """A call goes there; it is the probe if one is wanted."""
        if self._until is None:
            return
        if now >= self._until:
            self._probe_at, self._probe_before = now, math.inf
            self._until = now + max(self._open_for, LEAST_PATIENCE)
        elif self._probe_before == math.inf:  # One that did not ask.
            self._probe_before = now

    def note(self, failed: bool | None, now: float, began: float) -> Circuit | None:
        """A call that began at `began` has ended; None says nothing. Returns the circuit's state if that changed it."""
        if self._until is None:
            if failed is None or began < self._closed_at or not self._too_many(failed, now):
                return None
            return self._open(now)
        if not self._is_probe(began):
            return None
        self._probe_at = None
        if failed is None:
            self._until = now
            return None
        return self._open(now) if failed else self._close(now)

    def _is_probe(self, began: float) -> bool:
        """Whether a call that ends now is the probe. Its clock was read in the same step as that of `begin`, but later."""
        return self._probe_at is not None and (self._probe_at <= began < self._probe_before or began == self._probe_at)

    def _open(self, now: float) -> Circuit:
        self._openings += 1
        self._open_for = delay_before(self._openings + 1, self._config.backoff, self._rng)
        self._until = now + self._open_for
        return Circuit.OPEN

    def _close(self, now: float) -> Circuit:
        self._openings = self._in_a_row = 0
        self._until, self._closed_at = None, now
        if self._window is not None:
            self._window = Window(self._config.window)
        return Circuit.CLOSED

    def _too_many(self, failed: bool, now: float) -> bool:
        config = self._config
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if self._window is not None:
            self._window.note(failed, now)
        if not failed:
            return False
        if config.consecutive is not None and self._in_a_row >= config.consecutive:
            return True
        if self._window is None or config.failure_share is None:
            return False
        return self._window.calls >= config.min_calls and self._window.share >= config.failure_share


class Window:
    """Calls and failures of the last `length` seconds, which slides by a tenth of it at a time."""

    __slots__ = ("_bucket", "_calls", "_failures", "_width")

    _bucket: int | None

    def __init__(self, length: float) -> None:
        self._width = length / BUCKETS
        self._calls = [0] * BUCKETS
        self._failures = [0] * BUCKETS
        self._bucket = None

    @property
    def calls(self) -> int:
        """How many ended in it, as of the latest."""
        return sum(self._calls)

    @property
    def share(self) -> float:
        """The share of failures among them. There is at least one call."""
        return sum(self._failures) / self.calls

    def note(self, failed: bool, now: float) -> None:
        """Count a call that ended."""
        bucket = int(now // self._width)
        passed = bucket - self._bucket if self._bucket is not None else 0
        for old in range(bucket, bucket - min(passed, BUCKETS), -1):
            self._calls[old % BUCKETS] = self._failures[old % BUCKETS] = 0
        self._bucket = bucket
        self._calls[bucket % BUCKETS] += 1
        self._failures[bucket % BUCKETS] += failed
