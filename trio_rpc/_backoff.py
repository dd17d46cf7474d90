"""Jittered exponential delays: pure, with randomness passed in."""

from __future__ import annotations

from collections.abc import Callable

from ._policies import Backoff

__all__ = ["delay_before"]


def delay_before(attempt: int, backoff: Backoff, rng: Callable[[], float]) -> float:
    """Seconds between the start of try number `attempt` (the second is 2) and the start of the one before it.

    gRPC's formula: `min(initial * factor ** (attempt - 2), maximum)` times a factor in 1 +- jitter. `rng` yields
    numbers in [0, 1).
    """
    # The exponent is capped, as factor ** n overflows a float long after the maximum is reached.
    plain = min(backoff.initial * backoff.factor ** min(attempt - 2, 64), backoff.maximum)
    return plain * (1 + backoff.jitter * (2 * rng() - 1))
