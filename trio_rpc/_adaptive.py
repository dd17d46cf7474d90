"""A limit on concurrency that follows the latency: Gradient2 of Netflix's concurrency-limits, as a pure decision.

Calls that wait for each other take longer. So when the latency of late is above its long-term average by more than is
normal, there is too much under way, and the limit shrinks by their ratio; while it is not, the limit grows by a fixed
step. It is steady where the two are equal. Nothing changes while less than half of the limit is in use.

Two things differ from the original:

1. The latency of late is a mean over a short time. A single call tells more of its method than of the load: where fast
   and slow methods are mixed, each slow call would shrink the limit.
2. The long-term average does not learn while the limit binds. Else a lasting overload becomes the new normal: in a
   simulation of eight times the load that a server can take, the original's limit has risen to its maximum after a
   minute, and the latency to four times what it was. A server may have become slower for good, though. So after as
   long as the average looks back, the limit goes down to its minimum for some calls, and what they take is the new
   average; Envoy and brpc measure theirs anew in this way.
"""

from __future__ import annotations

import math

from ._policies import AdaptiveLimit

__all__ = ["Gradient2"]

SHORT_TIME = 0.1
"""Seconds that the latency of late is taken over, at least. Netflix's WindowedLimit has 1 s, which is slow to learn."""
SHORT_SAMPLES = 10
"""Calls that it is taken over, at least (WindowedLimit: 10)."""
WARM_UP = 10
"""Short times of which the long-term latency is the plain mean at first (Gradient2: 10 samples)."""
LOWEST_GRADIENT = 0.5
DRIFT = 2.0
"""A long-term latency so many times the present one is left over from an overload, and forgotten faster."""
FORGETTING = 0.95
SETTLING = 2
"""What is measured anew is what ends so many long-term latencies after the limit went down."""
PROBE = 5
"""Short times at the minimum, where latency is measured anew: 50 calls (Envoy: 50)."""


class Gradient2:
    """The limit for one server. `note` is told of each call that ended."""

    __slots__ = (
        "_bound",
        "_config",
        "_count",
        "_long",
        "_longs",
        "_probe",
        "_probed_at",
        "_sum",
        "_until",
        "_used",
        "estimate",
    )

    def __init__(self, config: AdaptiveLimit, now: float) -> None:
        self._config = config
        self.estimate: float = float(config.initial)
        """What the limit is reckoned from: not rounded, and the same while latency is measured anew."""
        self._long = 0.0
        self._longs = 0
        self._bound = 0
        """Short times in which the limit was reached, since the average last learned something."""
        self._probe: list[float] = []
        self._probed_at = math.inf
        """When the limit went down to measure anew; inf while it has not."""
        self._sum: float = 0.0
        self._count: int = 0
        self._used: int = 0
        self._until: float = now + SHORT_TIME

    @property
    def limit(self) -> int:
        """How many calls may be under way."""
        return int(self.estimate) if self._probed_at == math.inf else self._config.minimum

    @property
    def long_latency(self) -> float:
        """The long-term average, in seconds; 0 while nothing is known."""
        return self._long

    def note(self, latency: float, running: int, now: float) -> None:
        """A call took `latency` seconds and ended at `now`, when `running` calls were under way, itself included."""
        probing = self._probed_at != math.inf
        if probing and (now - latency < self._probed_at or now < self._probed_at + SETTLING * self._long):
            return  # It began beside too many others, or is one of the first to end, which are the short ones.
        self._sum += latency
        self._count += 1
        self._used = max(self._used, running)
        if self._count < SHORT_SAMPLES or now < self._until:
            return
        short, used = self._sum / self._count, self._used
        self._begin(now)
        if probing:
            self._measure(short)
            return
        self._learn(short, used, now)
        if used >= self.estimate / 2:
            self._adapt(short)

    def _begin(self, now: float) -> None:
        self._sum, self._count, self._used, self._until = 0.0, 0, 0, now + SHORT_TIME

    def _learn(self, short: float, used: int, now: float) -> None:
        if self._longs < WARM_UP:
            self._longs += 1
            self._long += (short - self._long) / self._longs
        elif used < self.limit:
            self._bound = 0
            self._long += (short - self._long) * 2 / (self._config.window + 1)
        else:
            self._bound += 1
            if self._bound >= self._config.window:
                self._probed_at, self._probe = now, []
        if self._long > DRIFT * short:
            self._long *= FORGETTING

    def _measure(self, short: float) -> None:
        self._probe.append(short)
        if len(self._probe) == PROBE:
            self._long = sum(self._probe) / PROBE
            self._probed_at, self._bound = math.inf, 0

    def _adapt(self, short: float) -> None:
        config = self._config
        ratio = config.tolerance * self._long / short if short > 0 else math.inf
        wanted = self.estimate * max(LOWEST_GRADIENT, min(1.0, ratio)) + config.queue
        estimate = self.estimate + (wanted - self.estimate) * config.smoothing
        self.estimate = max(float(config.minimum), min(float(config.maximum), estimate))
