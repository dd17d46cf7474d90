"""What is counted: the snapshots that users get, and the counters that they are made from."""

from __future__ import annotations

import enum
from typing import Literal, TypeAlias

import attrs

__all__ = [
    "AdmissionCounters",
    "CallerCounters",
    "ConnectionCounters",
    "Connectivity",
    "EndpointStatistics",
    "EventKind",
    "LineCounters",
    "PoolCounters",
    "PoolEvent",
    "PoolStatistics",
    "ServerCounters",
    "ServerStatistics",
]


class Connectivity(enum.Enum):
    """What an endpoint, or a pool, can be said to be in: gRPC's five states."""

    IDLE = "idle"
    """No connection, and none wanted."""
    CONNECTING = "connecting"
    READY = "ready"
    """A connection takes calls."""
    TRANSIENT_FAILURE = "transient failure"
    """The last dial failed. It stays so until there is a connection again."""
    SHUTDOWN = "shutdown"
    """Closed, or not in the set of endpoints any more."""


EventKind: TypeAlias = Literal[
    "connected",
    "connect_failed",
    "lost",
    "closed",
    "healthy",
    "unhealthy",
    "ejected",
    "restored",
    "circuit",
    "state",
    "joined",
    "left",
    "resolver_failed",
    "missed",
]


@attrs.frozen(kw_only=True)
class PoolEvent:
    """Something that happened in a pool; see `Pool.events`.

    The kinds: `connected`, `connect_failed`, `lost`, `closed` tell of a connection; `healthy`, `unhealthy` of its
    server, `ejected`, `restored`, `circuit` of an endpoint and its calls; `state` of an endpoint's connectivity, or
    without endpoint of the pool's; `joined`, `left` of an endpoint and the set; `resolver_failed` of where that comes
    from; `missed` of events that the watcher was too slow for.
    """

    kind: EventKind
    """What it is."""
    endpoint: str | None
    """Its address; None for the pool as a whole."""
    time: float
    """Trio's clock, in seconds."""
    detail: str
    """The new state, or the reason."""
    error: BaseException | None
    """What it came of, if that was an error."""


@attrs.frozen(kw_only=True)
class EndpointStatistics:
    """A snapshot of one endpoint of a pool."""

    address: str
    state: Connectivity
    weight: float
    """As configured."""
    share: float
    """The same, less while it starts slowly."""
    connections: int
    """Connections, those that go away included."""
    dialling: int
    in_flight: int
    """Calls under way."""
    free: int
    """Places for further calls."""
    waiting: int
    """Calls that may go nowhere else, and wait."""
    latency: float
    """The peak-sensitive average that balancing goes by, in seconds; 0 while nothing is known."""
    ejected: bool
    """It failed too much, and gets no calls for a while."""
    circuit: str
    """`closed`, `open` or `half-open`."""


@attrs.frozen(kw_only=True)
class PoolStatistics:
    """A snapshot of a pool; counts are since its start."""

    endpoints: int
    """Endpoints in the set."""
    connections: int
    """Ready connections, those that go away included."""
    idle: int
    """Ready connections without a call."""
    busy: int
    """Ready connections with calls in flight."""
    dialling: int
    """Connections being dialled, or waiting for their back-off."""
    min_connections: int
    """Connections kept open, as configured, over all endpoints."""
    max_connections: int
    """Most connections at once, as configured, over all endpoints."""
    in_flight: int
    """Calls sent and not ended, orphans included."""
    spare: int
    """Places for further calls on the connections at hand."""
    waiting: int
    """Calls waiting for a place."""
    orphans: int
    """Calls given up after `cancel_wait` whose handlers have not ended."""
    serving: int
    """Calls of the peers that run here."""
    requests: int
    """Calls made."""
    queued: int
    """Calls that had to wait for a place."""
    wait_seconds: float
    """Time spent waiting for a place, in all."""
    usage_seconds: float
    """Time that calls held a place on a connection, in all; divided by the time, it is the mean of `in_flight`."""
    errors: int
    """Calls that ended with an error."""
    retries: int
    """Further attempts, transparent ones included."""
    hedges: int
    """Attempts begun beside others of the same call."""
    throttled: int
    """Further attempts not made because the budget was spent, or the throttle held them back."""
    timeouts: int
    """Calls that found no place within `acquire_timeout`."""
    exhausted: int
    """Calls refused because the line was full."""
    late_replies: int
    """Frames for calls that had ended already."""
    connects: int
    """Dials begun."""
    connect_seconds: float
    """Time spent in dials that succeeded."""
    connect_errors: int
    """Dials that failed."""
    lost: int
    """Connections that ended without our wish, evicted ones included."""
    evicted: int
    """Connections given up because the peer was unresponsive."""
    closed_idle: int
    """Connections closed by `idle_timeout`."""
    closed_age: int
    """Connections retired by `max_lifetime`."""
    closed_going_away: int
    """Connections closed because the peer was draining."""


@attrs.define
class PoolCounters:
    """The counts of a pool that are its own; PoolStatistics says what each is."""

    connects: int = 0
    connect_seconds: float = 0.0
    connect_errors: int = 0
    lost: int = 0
    closed_idle: int = 0
    closed_age: int = 0
    closed_going_away: int = 0


@attrs.frozen(kw_only=True)
class ServerStatistics:
    """A snapshot of a server; counts are since its start."""

    connections: int
    """Connections that are open, after their HELLO."""
    handshaking: int
    """Connections that have not said HELLO yet."""
    max_connections: int | None
    """Most of both at once: as configured, or what the process has descriptors for, if that is less; None for no bound."""
    accept_queue: int | None
    """Connections that wait to be accepted, at the listener whose queue is the fullest; of TCP on Linux, else None."""
    accept_queue_limit: int | None
    """How many that queue holds: `backlog`, as the kernel has clipped it."""
    listen_overflows: int | None
    """Connections that found such a queue full since the start, of all programs in this network namespace (Linux)."""
    in_flight: int
    """Handlers that have not ended, those of lost connections included."""
    calling_back: int
    """Calls of ours to the clients that have not ended."""
    accepted: int
    """Connections accepted."""
    refused_connections: int
    """Connections that failed before or by their HELLO."""
    served: int
    """Requests whose handlers were begun, or were about to be."""
    refused: int
    """Requests refused for lack of room; those that are not counted below were beyond `max_in_flight`."""
    refused_server: int
    """Of these, by `max_calls`."""
    refused_principal: int
    """By `max_calls_per_principal`."""
    refused_method: int
    """By a method's own `limit`."""
    refused_adaptive: int
    """By the adaptive limit."""
    adaptive_limit: int | None
    """Where that stands; None without one."""
    expired: int
    """Requests whose deadline had passed before their handlers were begun."""
    evicted: int
    """Connections given up because the peer was unresponsive."""
    closed_age: int
    """Connections drained because of `max_age`."""
    closed_idle: int
    """Connections drained because of `max_idle`."""
    closed_expired: int
    """Connections whose credentials expired, or were revoked, while they were open."""
    accept_errors: int
    """Failed accepts; each was tried again, unless the server has ended with it."""
    joined: int
    """Calls with an idempotency key that joined a handler under way."""
    replayed: int
    """Calls with an idempotency key that got the result kept for it."""
    keyed_in_flight: int
    """Handlers of calls with an idempotency key, those for whom nobody waits at present included."""
    kept_results: int
    """Results and failures kept for such calls."""


@attrs.define
class ServerCounters:
    """The counts of a server that are its own; ServerStatistics says what each is."""

    accepted: int = 0
    refused_connections: int = 0
    accept_errors: int = 0
    closed_age: int = 0
    closed_idle: int = 0
    closed_expired: int = 0
    joined: int = 0
    replayed: int = 0


@attrs.define
class AdmissionCounters:
    """What a server's limits refused; ServerStatistics says what each is."""

    refused_server: int = 0
    refused_principal: int = 0
    refused_method: int = 0
    refused_adaptive: int = 0


@attrs.define
class CallerCounters:
    """What became of the calls of one caller."""

    requests: int = 0
    """Calls made."""
    errors: int = 0
    """Calls that ended with an error of this library, remote ones included."""
    retries: int = 0
    """Further attempts, transparent ones included."""
    hedges: int = 0
    """Attempts begun beside others of the same call."""
    throttled: int = 0
    """Further attempts not made because the budget was spent, or the throttle held them back."""


@attrs.define
class LineCounters:
    """What happened in the line."""

    queued: int = 0
    """Calls that had to wait for a place."""
    wait_seconds: float = 0.0
    """Time spent waiting, in all."""
    timeouts: int = 0
    """Calls that waited for longer than `acquire_timeout`."""
    exhausted: int = 0
    """Calls refused because the line was full."""


@attrs.define
class ConnectionCounters:
    """What happened on the connections of one pool or server, in all."""

    calls: int = 0
    """Calls begun by this side."""
    usage_seconds: float = 0.0
    """Time that calls of this side held their places, in all."""
    orphans: int = 0
    """Calls given up after `cancel_wait` whose handler has not ended yet."""
    late_replies: int = 0
    """Frames for calls that had already ended."""
    served: int = 0
    """Handlers begun by this side."""
    refused: int = 0
    """Requests refused for lack of room."""
    expired: int = 0
    """Requests whose deadline had passed before their handlers were begun."""
    evicted: int = 0
    """Connections given up because the peer was unresponsive."""
