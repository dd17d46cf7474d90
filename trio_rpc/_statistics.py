"""What is counted: the snapshots that users get, and the counters that they are made from."""

from __future__ import annotations

import attrs

__all__ = [
    "CallerCounters",
    "ConnectionCounters",
    "LineCounters",
    "PoolCounters",
    "PoolStatistics",
    "ServerCounters",
    "ServerStatistics",
]


@attrs.frozen(kw_only=True)
class PoolStatistics:
    """A snapshot of a pool; counts are since its start."""

    connections: int
    """Ready connections, those that go away included."""
    idle: int
    """Ready connections without a call."""
    busy: int
    """Ready connections with calls in flight."""
    dialling: int
    """Connections being dialled, or waiting for their back-off."""
    min_connections: int
    """Connections kept open, as configured."""
    max_connections: int
    """Most connections at once, as configured."""
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
    in_flight: int
    """Handlers running."""
    calling_back: int
    """Calls of ours to the clients that have not ended."""
    accepted: int
    """Connections accepted."""
    refused_connections: int
    """Connections that failed before or by their HELLO."""
    served: int
    """Requests whose handlers were begun, or were about to be."""
    refused: int
    """Requests refused for lack of room."""
    evicted: int
    """Connections given up because the peer was unresponsive."""
    accept_errors: int
    """Failed accepts; each was tried again."""


@attrs.define
class ServerCounters:
    """The counts of a server that are its own; ServerStatistics says what each is."""

    accepted: int = 0
    refused_connections: int = 0
    accept_errors: int = 0


@attrs.define
class CallerCounters:
    """What became of the calls of one caller."""

    requests: int = 0
    """Calls made."""
    errors: int = 0
    """Calls that ended with an error of this library, remote ones included."""
    retries: int = 0
    """Further attempts, transparent ones included."""


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
    evicted: int = 0
    """Connections given up because the peer was unresponsive."""
