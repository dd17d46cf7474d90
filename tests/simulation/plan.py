"""A plan: who there is, what is called, and what goes wrong."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from trio_rpc import (
    AdaptiveLimit,
    CircuitBreaker,
    Heartbeat,
    HedgePolicy,
    LeastInFlight,
    OutlierEjection,
    PoolLimits,
    PowerOfTwo,
    RetryPolicy,
    RoundRobin,
    ServerLimits,
)

__all__ = [
    "Ail",
    "Balance",
    "Call",
    "Client",
    "Close",
    "Cut",
    "Drain",
    "Freeze",
    "Kill",
    "LinkFault",
    "Lose",
    "Plan",
    "Refuse",
    "Resolve",
    "Server",
    "Slow",
    "Step",
    "Tend",
]

Balance: TypeAlias = LeastInFlight | RoundRobin | PowerOfTwo


# -- steps: each at its time -------------------------------------------------------------------------------------------


@attrs.frozen
class Call:
    """One call, of any shape. Its caller may give up at a deadline, be cancelled, leave a stream early, or fail itself."""

    at: float
    number: int
    client: int
    shape: str
    takes: float
    cleanup: float
    items: int
    size: int
    deadline: float | None
    cancelled_after: float | None
    leaves_after: int | None
    spoilt_after: int | None
    keyed: bool
    hedge: HedgePolicy | None
    wait_for_ready: bool | None
    priority: int | None
    routing_key: str | None

    def __str__(self) -> str:
        said = {name: value for name, value in attrs.asdict(self).items() if value is not None and value is not False}
        return f"Call({', '.join(f'{name}={value}' for name, value in said.items())})"


@attrs.frozen
class Freeze:
    """Nothing passes for a while, in these directions (0 there, 1 back); nothing is lost."""

    at: float
    client: int
    server: int
    directions: tuple[int, ...]
    seconds: float


@attrs.frozen
class Slow:
    """For a while bytes take `latency` seconds each way, and arrive by `most` at a time, `pause` seconds apart."""

    at: float
    client: int
    server: int
    latency: float
    most: int | None
    pause: float
    seconds: float


@attrs.frozen
class Lose:
    """What the connections there are carry is lost from now on, in these directions: a black hole."""

    at: float
    client: int
    server: int
    directions: tuple[int, ...]


@attrs.frozen
class Cut:
    """The connections there are break, each when so many more bytes have arrived in either direction."""

    at: float
    client: int
    server: int
    after: int


@attrs.frozen
class Refuse:
    """A host takes no connections for a while: it refuses them, or says nothing at all."""

    at: float
    server: int
    seconds: float
    silent: bool


@attrs.frozen
class Drain:
    """A server is drained. The next one begins `pause` seconds after that, or before it, where that is None."""

    at: float
    server: int
    grace: float
    pause: float | None


@attrs.frozen
class Kill:
    """A server is gone from one moment to the next. The next one begins after `pause`."""

    at: float
    server: int
    pause: float


@attrs.frozen
class Ail:
    """A server says of itself for a while that it had better not be called."""

    at: float
    server: int
    seconds: float


@attrs.frozen
class Resolve:
    """A client's resolver gives other endpoints: these, or none at all, or it fails (None)."""

    at: float
    client: int
    servers: tuple[int, ...] | None


@attrs.frozen
class Tend:
    """Somebody tends a pool: recycles it, has it check its connections, or resizes or suspends it for a while."""

    at: float
    client: int
    what: str
    seconds: float


@attrs.frozen
class Close:
    """A pool is closed under its callers: at once, or when it has been drained for `grace` seconds."""

    at: float
    client: int
    grace: float | None


LinkFault: TypeAlias = Freeze | Slow | Lose | Cut
Step: TypeAlias = Call | LinkFault | Refuse | Drain | Kill | Ail | Resolve | Tend | Close


# -- who there is ------------------------------------------------------------------------------------------------------


@attrs.frozen
class Server:
    """What all servers of one host are like."""

    limits: ServerLimits
    heartbeat: Heartbeat
    adaptive: AdaptiveLimit | None


@attrs.frozen
class Client:
    """A pool, and whom it calls."""

    servers: tuple[int, ...]
    resolved: bool
    """They come from a resolver, and may change."""
    limits: PoolLimits
    heartbeat: Heartbeat
    retry: RetryPolicy
    hedge: HedgePolicy | None
    balance: Balance
    ejection: OutlierEjection | None
    breaker: CircuitBreaker | None
    checks_health: bool
    prepares: bool
    """It makes a call on each connection before others do."""
    serves: bool
    """It can be called back."""
    capacity: int
    """Bytes under way on a connection, in each direction."""
    latency: float


@attrs.frozen
class Plan:
    """All that happens, apart from what follows from it."""

    seed: int
    codec: str
    servers: tuple[Server, ...]
    clients: tuple[Client, ...]
    steps: tuple[Step, ...]

    @property
    def patience(self) -> float:
        """Seconds in which the slowest heartbeat finds out that a connection is dead."""
        beats = [server.heartbeat for server in self.servers] + [client.heartbeat for client in self.clients]
        return max((beat.interval or 0) + beat.timeout for beat in beats)
