"""Every limit and default, in one table that the code, the docs and introspection read.

Times are seconds, sizes bytes; `None` switches a bound off. Each field's metadata holds its one-line meaning and
the source of its default: `describe(PoolLimits)` yields the rows that the reference page prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import attrs

from ._checks import of
from ._errors import Code

__all__ = [
    "AdaptiveLimit",
    "Backoff",
    "Balance",
    "CircuitBreaker",
    "Heartbeat",
    "HedgePolicy",
    "LeastInFlight",
    "OutlierEjection",
    "PoolLimits",
    "PowerOfTwo",
    "RetryBudget",
    "RetryPolicy",
    "RetryThrottle",
    "RoundRobin",
    "ServerLimits",
    "describe",
]

KIB = 1024
MIB = 1024 * KIB


def _setting(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float = math.inf,
    off: bool = False,
) -> Any:
    """A documented field; `off` says that None (no bound) is welcome. With a whole default only whole values are."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None:
            if not off:
                raise ValueError(f"{attribute.name} must be a number, not None: this bound cannot be switched off")
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{attribute.name} must be a number, not {value!r:.80}")
        if isinstance(default, int) and isinstance(value, float):  # It travels to the peer, who would not take 2.0.
            raise TypeError(f"{attribute.name} must be a whole number, not {value!r}")
        if (at_least is not None and not value >= at_least) or (above is not None and not value > above):
            bound = f"at least {at_least}" if at_least is not None else f"more than {above}"
            raise ValueError(f"{attribute.name} must be {bound}, not {value!r}")
        if value > at_most or value == math.inf:
            bound = f"at most {at_most}" if at_most < math.inf else "finite, or None for no bound" if off else "finite"
            raise ValueError(f"{attribute.name} must be {bound}, not {value!r}")

    return attrs.field(default=default, validator=check, metadata={"doc": doc, "off": off})


def describe(config: type[Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield `(name, default, meaning)` for each field of one of the configuration classes."""
    for field in attrs.fields(config):
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        yield field.name, default, field.metadata["doc"]


@attrs.frozen(kw_only=True)
class Backoff:
    """Jittered exponential delays, gRPC's formula: `min(initial * factor**n, maximum)`, times 1 +- jitter."""

    initial: float = _setting(1.0, "Delay before the second try (gRPC's connection back-off: 1 s).", at_least=0)
    factor: float = _setting(1.6, "Growth from one delay to the next (gRPC: 1.6).", at_least=1)
    maximum: float = _setting(120.0, "The longest delay before jitter (gRPC: 120 s).", at_least=0)
    jitter: float = _setting(
        0.2, "Share by which each delay is randomised either way (gRPC: 0.2).", at_least=0, at_most=1
    )


@attrs.frozen
class Heartbeat:
    """When a silent peer is pinged and when it is given up; each side tells the other in its HELLO.

    A dead peer is seen within `interval + timeout`. `interval=None` sends no pings and evicts no silent peer;
    the peer's own pings are answered all the same.
    """

    interval: float | None = _setting(10.0, "Read-idle time before a ping is sent; None sends none.", above=0, off=True)
    timeout: float = _setting(5.0, "Time for any byte to arrive after the ping left.", above=0)


@attrs.frozen(kw_only=True)
class RetryThrottle:
    """gRPC's brake on retries (A6): a bucket that failures empty and successes fill. No retry unless it is over half full.

    Of a retryable failure one token goes, of a success `ratio` of one comes back.
    """

    tokens: int = _setting(10, "Tokens in a full bucket (gRPC's usual example: 10).", at_least=1, at_most=1000)
    ratio: float = _setting(0.1, "Tokens that a success brings back (gRPC's usual example: 0.1).", above=0)


@attrs.frozen(kw_only=True)
class RetryBudget:
    """How many retries and hedges a pool may make, in proportion to its calls: Finagle's budget.

    An outage must not be answered with several times the load. Each call deposits `ratio` of a retry, which lives for
    `window` seconds; beside these, `per_second` retries may be made whatever the load is. What surely did not run is
    paid for too, from the second time on that it happens to one call.
    """

    ratio: float = _setting(0.2, "Retries for each call (Finagle: 20 %).", at_least=0, at_most=1000)
    per_second: float = _setting(10.0, "Retries a second beside these (Finagle: 10).", at_least=0)
    window: float = _setting(10.0, "How long a deposit can be drawn on (Finagle: 10 s).", above=0)


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

    attempts: int = _setting(
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

    delay: float = _setting(0.1, "Time without an answer after which the next attempt is begun.", at_least=0)
    attempts: int = _setting(2, "Attempts in all, the first included; more than 5 act as 5.", at_least=1)


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

    decay: float = _setting(10.0, "Time in which an old latency fades to 1/e (Finagle, Linkerd: 10 s).", above=0)
    failure_penalty: float = _setting(5.0, "Latency that a failure counts as (Linkerd: 5 s).", at_least=0)


Balance: TypeAlias = LeastInFlight | RoundRobin | PowerOfTwo


@attrs.frozen(kw_only=True)
class OutlierEjection:
    """Endpoints that fail far more than the others get no calls for a while (gRPC's A50, which is Envoy's).

    An endpoint is ejected for `base_time` times the number of its latest ejections, at most `max_time`. Never more
    than `max_share` of all, though one may always be; and where less than `panic` of all are left, none counts as
    ejected. Its connections stay open. With one endpoint nothing is ever ejected.
    """

    interval: float = _setting(10.0, "Time between two looks at what was counted (A50: 10 s).", above=0)
    base_time: float = _setting(30.0, "First ejection; the n-th lasts n times as long (A50: 30 s).", above=0)
    max_time: float = _setting(300.0, "Longest ejection (A50: 300 s).", above=0)
    max_share: float = _setting(
        0.1, "Most endpoints ejected at once, though one may always be (A50: 10 %).", at_least=0, at_most=1
    )
    panic: float = _setting(
        0.5, "Below this share of endpoints left, all are picked from again (Envoy: 50 %).", at_least=0, at_most=1
    )
    consecutive: int | None = _setting(5, "Failures in a row that eject at once (Envoy: 5).", at_least=1, off=True)
    min_endpoints: int = _setting(5, "Endpoints with enough calls that comparing needs (A50: 5).", at_least=1)
    deviations: float | None = _setting(
        1.9, "Standard deviations below the mean success rate (A50: 1.9).", above=0, off=True
    )
    deviations_calls: int = _setting(100, "Calls in an interval that count for deviations (A50: 100).", at_least=1)
    failure_share: float | None = _setting(
        0.85, "Share of failures that ejects (A50: 85 %).", above=0, at_most=1, off=True
    )
    failure_calls: int = _setting(50, "Calls in an interval that count for the share (A50: 50).", at_least=1)


@attrs.frozen(kw_only=True)
class CircuitBreaker:
    """After too many failures an endpoint gets no calls at all for a while, even if it is the only one; then one probe.

    With all endpoints' circuits open a call fails at once with CircuitOpen, unless it waits for ready. A probe that
    succeeds closes the circuit; one that fails opens it again for twice as long.
    """

    consecutive: int | None = _setting(5, "Failures in a row that open it (Finagle: 5).", at_least=1, off=True)
    failure_share: float | None = _setting(
        None, "Share of failures among the last `window` seconds' calls that opens it.", above=0, at_most=1, off=True
    )
    window: float = _setting(30.0, "Time over which the share counts (Finagle: 30 s).", above=0)
    min_calls: int = _setting(5, "Calls in the window that the share needs (Finagle: 5).", at_least=1)
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

    initial: int = _setting(20, "The limit at first (Gradient2: 20).", at_least=1)
    minimum: int = _setting(20, "The lowest limit (Gradient2: 20).", at_least=1)
    maximum: int = _setting(200, "The highest limit (Gradient2: 200).", at_least=1)
    tolerance: float = _setting(1.5, "Growth of latency that is taken for normal (Gradient2: 1.5).", at_least=1)
    smoothing: float = _setting(0.2, "Weight of a new estimate of the limit (Gradient2: 0.2).", above=0, at_most=1)
    queue: int = _setting(4, "How far the limit may grow at a time (Gradient2: 4).", at_least=1)
    window: int = _setting(
        600, "Tenths of a second that the long-term latency looks back (Gradient2: 600 samples).", at_least=1
    )

    def __attrs_post_init__(self) -> None:
        if not self.minimum <= self.initial <= self.maximum:
            raise ValueError(
                f"initial={self.initial} must lie between minimum={self.minimum} and maximum={self.maximum}"
            )


@attrs.frozen(kw_only=True)
class Limits:
    """What both sides of a connection bound."""

    max_in_flight: int = _setting(
        256, "Calls at once on one connection; told to the peer for its calls to us.", at_least=1
    )
    max_frame_size: int = _setting(
        1 * MIB, "Largest frame accepted; checked at the header, before memory is spent.", at_least=16 * KIB
    )
    max_message_size: int = _setting(
        4 * MIB, "Largest message accepted, over all its chunks (gRPC's receive limit).", at_least=1 * KIB
    )
    max_metadata_size: int = _setting(8 * KIB, "Most metadata on one message (gRPC's soft limit).", at_least=0)
    max_metadata_items: int = _setting(64, "Most entries of metadata on one message.", at_least=0)
    max_depth: int = _setting(64, "Lists and maps inside each other in one message.", at_least=8, at_most=256)
    max_containers: int = _setting(20_000, "Lists and maps in one message.", at_least=64)
    max_receiving_bytes: int = _setting(
        64 * MIB,
        "Bytes of messages that are still arriving in chunks, on one connection; a request beyond is refused.",
        at_least=1 * KIB,
    )
    frame_timeout: float | None = _setting(10.0, "Time in which a frame, once begun, must be whole.", above=0, off=True)
    stream_window: int = _setting(
        64 * KIB, "Unconsumed bytes a stream's sender may have under way (HTTP/2's 64 KiB).", at_least=1
    )
    stream_window_items: int = _setting(1024, "Unconsumed items a stream's sender may have under way.", at_least=1)
    write_timeout: float | None = _setting(
        10.0, "A write that makes no progress for so long evicts the peer (NATS: 10 s).", above=0, off=True
    )
    cancel_wait: float = _setting(
        1.0, "How long a cancelled call waits for its handler's end before it goes on.", at_least=0
    )
    max_queued_bytes: int = _setting(
        8 * MIB,
        "Bytes queued for a peer that does not read, beyond which none of its further requests is begun.",
        at_least=64 * KIB,
    )
    close_timeout: float = _setting(1.0, "Longest wait for a last flush and a tidy end of the transport.", at_least=0)
    excess_factor: int = _setting(
        4,
        "Requests beyond `max_in_flight` in a row, or refused and not read, in units of it, that close a connection (Go: 4).",
        at_least=1,
    )
    fault_budget: int | None = _setting(
        1000,
        "Errors of its own making that a peer has at once before it is closed (nghttp2's reset bucket: 1000).",
        at_least=1,
        off=True,
    )
    fault_rate: float = _setting(33.0, "And so many a second beyond (nghttp2: 33).", at_least=0)
    ping_budget: int = _setting(10, "Pings beyond the announced rhythm that a peer has at once.", at_least=1)
    ping_rate: float = _setting(2.0, "And so many a second beyond.", at_least=0)


@attrs.frozen(kw_only=True)
class PoolLimits(Limits):
    """The client's bounds; see the fields. What counts connections counts those of one endpoint."""

    min_connections: int = _setting(1, "Connections kept open to each endpoint, dialled in the background.", at_least=0)
    max_connections: int = _setting(
        4,
        "Most connections to one endpoint that take calls, those being dialled included; what goes away ends beside them.",
        at_least=1,
    )
    autostart: bool = attrs.field(
        default=True,
        validator=of(bool),
        metadata={"doc": "Dial the minimum at once; False: with the first call, or `connect`.", "off": False},
    )
    max_waiting: int | None = _setting(
        10_000, "Calls waiting for a place; one more raises PoolExhausted.", at_least=0, off=True
    )
    connect_timeout: float | None = _setting(5.0, "Name, TCP, TLS and HELLO together.", above=0, off=True)
    acquire_timeout: float | None = _setting(10.0, "Longest wait for a place before PoolTimeout.", at_least=0, off=True)
    spread: bool = attrs.field(
        default=True,
        validator=of(bool),
        metadata={
            "doc": "Calls go where the fewest are; False: to the oldest connection with a place, so that the others can age.",
            "off": False,
        },
    )
    priorities: int = _setting(
        8, "Classes in the line: 0 is served first, and who names none is in the last.", at_least=1
    )
    idle_timeout: float | None = _setting(
        600.0,
        "Unused time after which a connection above the minimum is closed; 0: as soon as nobody waits for it.",
        at_least=0,
        off=True,
    )
    max_idle: float | None = _setting(
        None, "Unused time after which any connection is replaced, those of the minimum too.", above=0, off=True
    )
    validate_after: float | None = _setting(
        None,
        "Silence after which a connection is pinged before a call goes on it (HikariCP: 0.5 s).",
        at_least=0,
        off=True,
    )
    validate_timeout: float = _setting(5.0, "How long that ping may take (HikariCP: 5 s).", above=0)
    slow_start: float | None = _setting(
        None, "Time in which a new endpoint's share of calls grows from a tenth to the whole.", above=0, off=True
    )
    max_lifetime: float | None = _setting(
        3600.0, "Age, less up to 5 % jitter, at which a connection is replaced.", above=0, off=True
    )
    connect_backoff: Backoff = attrs.field(
        default=Backoff(),
        validator=of(Backoff, advice="write Backoff(initial=...)"),
        metadata={"doc": "Delays between failed dials, start to start; reset by a HELLO.", "off": False},
    )

    def __attrs_post_init__(self) -> None:
        if self.min_connections > self.max_connections:
            raise ValueError(
                f"min_connections={self.min_connections} is above max_connections={self.max_connections}: raise the one or lower the other"
            )
        if self.validate_after is not None and (self.acquire_timeout or math.inf) <= self.validate_timeout:
            raise ValueError(
                f"validate_timeout={self.validate_timeout:g} is not below acquire_timeout={self.acquire_timeout:g}: "
                "a call would give up before it could go elsewhere"
            )


@attrs.frozen(kw_only=True)
class ServerLimits(Limits):
    """The server's bounds; see the fields."""

    max_connections: int | None = _setting(
        10_000, "Connections at once; further ones wait in the listen queue.", at_least=1, off=True
    )
    max_connections_per_principal: int | None = _setting(
        1024, "Connections at once of one principal; without `authenticate`, of one host.", at_least=1, off=True
    )
    max_handshaking: int | None = _setting(
        256,
        "Connections at once that have not said HELLO; further ones wait in the listen queue.",
        at_least=1,
        off=True,
    )
    backlog: int = _setting(
        4096, "Connections that the listen queue holds; the kernel may clip it (somaxconn).", at_least=1
    )
    auth_failure_rate: float | None = _setting(
        5.0,
        "Refused credentials a second from one host; beyond that rate each refusal is told later.",
        above=0,
        off=True,
    )
    handshake_timeout: float | None = _setting(
        5.0, "TLS, preface, HELLO and authentication together.", above=0, off=True
    )
    max_deadline: float | None = _setting(
        None, "Longest run of any handler; a caller's longer deadline is cut to it.", above=0, off=True
    )
    max_calls: int | None = _setting(
        10_000, "Handlers at once on the whole server (reliability: 10,000).", at_least=1, off=True
    )
    max_calls_per_principal: int | None = _setting(
        None, "Handlers at once for one principal; without `authenticate`, for one address.", at_least=1, off=True
    )
    max_age: float | None = _setting(
        None, "Age, +-10 %, at which a connection is drained, so that clients spread anew.", above=0, off=True
    )
    max_age_grace: float | None = _setting(
        None, "Time that calls on such a connection have left; None: as long as they take.", at_least=0, off=True
    )
    max_idle: float | None = _setting(
        None, "Time without any call after which a connection is drained.", above=0, off=True
    )
    result_window: float = _setting(
        60.0, "How long the result of a call with an idempotency key is kept for a retry.", at_least=0
    )
    max_kept_results: int = _setting(10_000, "Results kept for that; beyond, the oldest are forgotten.", at_least=0)
    max_kept_bytes: int = _setting(64 * MIB, "What they may take; beyond, the oldest are forgotten.", at_least=0)
    orphan_window: float = _setting(
        10.0,
        "How long a handler with an idempotency key runs on for a caller who was lost and may come back.",
        at_least=0,
    )
    cancel_warn_after: float | None = _setting(
        5.0, "A handler that was cancelled and still runs after so long is logged.", above=0, off=True
    )
    stall_warn_after: float | None = _setting(
        0.5, "A handler that holds up the event loop for so long in one step is logged.", above=0, off=True
    )
    max_threads: int = _setting(40, "Worker threads for `@method(thread=True)` (Trio's own default: 40).", at_least=1)
