"""How pools and servers decide: when to try again, where to send a call, whom to leave out, how much to take on.

Tables of settings like `_config`, whose conventions they share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import attrs

from ._checks import of, setting
from ._errors import Code

__all__ = [
    "AdaptiveLimit",
    "Backoff",
    "Balance",
    "CircuitBreaker",
    "HedgePolicy",
    "LeastInFlight",
    "OutlierEjection",
    "PowerOfTwo",
    "RetryBudget",
    "RetryPolicy",
    "RetryThrottle",
    "RoundRobin",
]


@attrs.frozen(kw_only=True)
class Backoff:
    """Jittered exponential delays, gRPC's formula: `min(initial * factor**n, maximum)`, times 1 +- jitter."""

    initial: float = setting(1.0, "Delay before the second try (gRPC's connection back-off: 1 s).", at_least=0)
    factor: float = setting(1.6, "Growth from one delay to the next (gRPC: 1.6).", at_least=1)
    maximum: float = setting(120.0, "The longest delay before jitter (gRPC: 120 s).", at_least=0)
    jitter: float = setting(
        0.2, "Share by which each delay is randomised either way (gRPC: 0.2).", at_least=0, at_most=1
    )


@attrs.frozen(kw_only=True)
class RetryThrottle:
    """gRPC's brake on retries (A6): a bucket that failures empty and successes fill. No retry unless it is over half full.

    Of a retryable failure one token goes, of a success `ratio` of one comes back.
    """

    tokens: int = setting(10, "Tokens in a full bucket (gRPC's usual example: 10).", at_least=1, at_most=1000)
    ratio: float = setting(0.1, "Tokens that a success brings back (gRPC's usual example: 0.1).", above=0)


@attrs.frozen(kw_only=True)
class RetryBudget:
    """How many retries and hedges a pool may make, in proportion to its calls: Finagle's budget.

    An outage must not be answered with several times the load. Each call deposits `ratio` of a retry, which lives for
    `window` seconds; beside these, `per_second` retries may be made whatever the load is. What surely did not run is
    paid for too, from the second time on that it happens to one call.
    """

    ratio: float = setting(0.2, "Retries for each call (Finagle: 20 %).", at_least=0, at_most=1000)
    per_second: float = setting(10.0, "Retries a second beside these (Finagle: 10).", at_least=0)
    window: float = setting(10.0, "How long a deposit can be drawn on (Finagle: 10 s).", above=0)


def _codes(codes: Any) -> frozenset[Code]:
    if isinstance(codes, Code):
        raise TypeError(f"codes must be a set of codes, not one alone: write {{Code.{codes.name}}}")
    if isinstance(codes, str) or not isinstance(codes, Iterable):
        raise TypeError(f"codes must be a set of codes like {{Code.UNAVAILABLE}}, not {codes!r:.80}")
    found = list(codes)
    for code in found:
        if not isinstance(code, Code):
            raise TypeError(f"codes must hold codes like Code.UNAVAILABLE, not {code!r:.80}")
    return frozenset(found)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """Retries of `idempotent=True` methods after failures that may have run.

    What surely did not run is retried for any method, however many attempts that takes, inside the call's own deadline;
    unless `refusals` says not to. All attempts share that one deadline.
    """

    attempts: int = setting(
        3, "Attempts in all, the first included (industrial default: 3); more than 5 act as 5, as in gRPC.", at_least=1
    )
    backoff: Backoff = attrs.field(
        default=Backoff(initial=0.1, factor=2.0, maximum=1.0, jitter=0.2),
        validator=of(Backoff, advice="write Backoff(initial=...)"),
        metadata={"doc": "Delays between attempts: 100 ms, doubling to 1 s, +-20 %.", "off": False},
    )
    refusals: bool = attrs.field(
        default=True,
        validator=of(bool),
        metadata={
            "doc": "Try again what surely did not run, inside the deadline; False: a full server is told at once.",
            "off": False,
        },
    )
    codes: frozenset[Code] = attrs.field(
        default=frozenset({Code.UNAVAILABLE}),
        converter=_codes,
        metadata={"doc": "Codes of handlers' own failures that are worth another attempt.", "off": False},
    )
    budget: RetryBudget | None = attrs.field(
        default=RetryBudget(),
        validator=of(RetryBudget, none=True, advice="write RetryBudget(ratio=...)"),
        metadata={
            "doc": "What retries and hedges of the pool may cost together; only the pool's own counts.",
            "off": True,
        },
    )
    throttle: RetryThrottle | None = attrs.field(
        default=None,
        validator=of(RetryThrottle, none=True, advice="write RetryThrottle(tokens=...)"),
        metadata={"doc": "gRPC's brake, beside the budget; only the pool's own counts.", "off": True},
    )


@attrs.frozen(kw_only=True)
class HedgePolicy:
    """Further attempts of an `idempotent=True` unary method while earlier ones are still under way; the first result wins.

    They go to other endpoints where there are any. Losers are cancelled, and joined by the pool, not by the caller.
    """

    delay: float = setting(0.1, "Time without an answer after which the next attempt is begun.", at_least=0)
    attempts: int = setting(2, "Attempts in all, the first included; more than 5 act as 5.", at_least=1)


# -- many endpoints ----------------------------------------------------------------------------------------------------


@attrs.frozen
class LeastInFlight:
    """Balance by calls under way: the endpoint with the fewest, in proportion to its weight."""


@attrs.frozen
class RoundRobin:
    """Balance by turns, in proportion to weights."""


@attrs.frozen(kw_only=True)
class PowerOfTwo:
    """Balance by the better of two random endpoints: fewer calls under way times a peak-sensitive average of latency.

    Finagle's and Linkerd's P2C with peak EWMA: a slower answer than the average replaces it at once, faster ones
    lower it slowly, each by a tenth of the difference at least. A failure counts as an answer that took `failure_penalty`, so that fast errors attract nothing;
    single ones raise the average slowly too, five in a row at once.
    """

    decay: float = setting(10.0, "Time in which an old latency fades to 1/e (Finagle, Linkerd: 10 s).", above=0)
    failure_penalty: float = setting(5.0, "Latency that a failure counts as (Linkerd: 5 s).", at_least=0)


Balance: TypeAlias = LeastInFlight | RoundRobin | PowerOfTwo


@attrs.frozen(kw_only=True)
class OutlierEjection:
    """Endpoints that fail far more than the others get no calls for a while (gRPC's A50, which is Envoy's).

    An endpoint is ejected for `base_time` times the number of its latest ejections, at most `max_time`. Never more
    than `max_share` of all, though one may always be; and where less than `panic` of all are left, none counts as
    ejected. Its connections stay open. With one endpoint nothing is ever ejected.
    """

    interval: float = setting(10.0, "Time between two looks at what was counted (A50: 10 s).", above=0)
    base_time: float = setting(30.0, "First ejection; the n-th lasts n times as long (A50: 30 s).", above=0)
    max_time: float = setting(300.0, "Longest ejection (A50: 300 s).", above=0)
    max_share: float = setting(
        0.1, "Most endpoints ejected at once, though one may always be (A50: 10 %).", at_least=0, at_most=1
    )
    panic: float = setting(
        0.5, "Below this share of endpoints left, all are picked from again (Envoy: 50 %).", at_least=0, at_most=1
    )
    consecutive: int | None = setting(5, "Failures in a row that eject at once (Envoy: 5).", at_least=1, off=True)
    min_endpoints: int = setting(5, "Endpoints with enough calls that comparing needs (A50: 5).", at_least=1)
    deviations: float | None = setting(
        1.9, "Standard deviations below the mean success rate (A50: 1.9).", above=0, off=True
    )
    deviations_calls: int = setting(100, "Calls in an interval that count for deviations (A50: 100).", at_least=1)
    failure_share: float | None = setting(
        0.85, "Share of failures that ejects (A50: 85 %).", above=0, at_most=1, off=True
    )
    failure_calls: int = setting(50, "Calls in an interval that count for the share (A50: 50).", at_least=1)


@attrs.frozen(kw_only=True)
class CircuitBreaker:
    """After too many failures an endpoint gets no calls at all for a while, even if it is the only one; then one probe.

    With all endpoints' circuits open a call fails at once with CircuitOpen, unless it waits for ready. A probe that
    succeeds closes the circuit; one that fails opens it again for twice as long.
    """

    consecutive: int | None = setting(5, "Failures in a row that open it (Finagle: 5).", at_least=1, off=True)
    failure_share: float | None = setting(
        None, "Share of failures among the last `window` seconds' calls that opens it.", above=0, at_most=1, off=True
    )
    window: float = setting(30.0, "Time over which the share counts (Finagle: 30 s).", above=0)
    min_calls: int = setting(5, "Calls in the window that the share needs (Finagle: 5).", at_least=1)
    backoff: Backoff = attrs.field(
        default=Backoff(initial=5.0, factor=2.0, maximum=300.0, jitter=0.2),
        validator=of(Backoff, advice="write Backoff(initial=...)"),
        metadata={"doc": "How long it stays open: 5 s, doubling to 300 s, +-20 % (Finagle: 5 to 300 s).", "off": False},
    )


@attrs.frozen(kw_only=True)
class AdaptiveLimit:
    """A limit on handlers at once that follows the latency (Netflix's Gradient2).

    `new = limit * gradient + queue`, with `gradient = max(0.5, min(1, tolerance * long / short))` of the long-term and
    the latest latency, smoothed; no change while less than half of the limit is in use. The latest latency is the mean
    of a tenth of a second and of ten calls, at least. The long-term one learns nothing while the limit is reached: it
    is measured anew then, once in a `window`, with few calls at a time.
    """

    initial: int = setting(20, "The limit at first (Gradient2: 20).", at_least=1)
    minimum: int = setting(20, "The lowest limit (Gradient2: 20).", at_least=1)
    maximum: int = setting(200, "The highest limit (Gradient2: 200).", at_least=1)
    tolerance: float = setting(1.5, "Growth of latency that is taken for normal (Gradient2: 1.5).", at_least=1)
    smoothing: float = setting(0.2, "Weight of a new estimate of the limit (Gradient2: 0.2).", above=0, at_most=1)
    queue: int = setting(4, "How far the limit may grow at a time (Gradient2: 4).", at_least=1)
    window: int = setting(
        600, "Tenths of a second that the long-term latency looks back (Gradient2: 600 samples).", at_least=1
    )

    def __attrs_post_init__(self) -> None:
        if not self.minimum <= self.initial <= self.maximum:
            raise ValueError(
                f"initial={self.initial} must lie between minimum={self.minimum} and maximum={self.maximum}"
            )
