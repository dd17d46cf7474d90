"""From a seed to a plan. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from trio_rpc import (
    AdaptiveLimit,
    Backoff,
    CircuitBreaker,
    Heartbeat,
    HedgePolicy,
    LeastInFlight,
    OutlierEjection,
    PoolLimits,
    PowerOfTwo,
    RetryBudget,
    RetryPolicy,
    RetryThrottle,
    RoundRobin,
    ServerLimits,
)

from .plan import (
    Ail,
    Balance,
    Call,
    Client,
    Close,
    Cut,
    Drain,
    Freeze,
    Kill,
    Lose,
    Plan,
    Refuse,
    Resolve,
    Server,
    Slow,
    Step,
    Tend,
)

__all__ = ["LONGEST", "ORPHAN_WINDOW", "PEACE", "make_plan"]

SPAN = 8.0
"""Seconds in which all steps begin."""
LONGEST = 3.0
"""Seconds that any handler takes, or its clean-up, or that any caller waits who does not wait for ever."""
PEACE = 30.0
"""Seconds in which a drain has to cut nothing short."""
ORPHAN_WINDOW = 2.0
PLACES = 12
"""What the widest pool needs of one server."""
SHAPES = ("once", "again", "decline", "relay", "first", "quorum", "count", "total", "double")
KEYED = ("once", "again", "decline", "relay")
"""Those that may have an idempotency key."""
QUICK = Backoff(initial=0.1, maximum=1, jitter=0.2)
EJECTION = OutlierEjection(
    interval=1,
    base_time=1,
    max_time=4,
    max_share=0.5,
    consecutive=3,
    min_endpoints=1,
    deviations_calls=3,
    failure_calls=3,
)
BREAKER = CircuitBreaker(consecutive=3, backoff=Backoff(initial=0.5, maximum=1))


def make_plan(seed: int) -> Plan:
    """The plan of one seed."""
    rng = Random(seed)
    codec = rng.choice(["msgpack", "msgpack", "json"])
    servers = tuple(_server(rng) for _ in range(rng.choice([1, 1, 2, 3, 4])))
    clients = tuple(_client(rng, servers) for _ in range(rng.choice([1, 1, 2, 3])))
    draw = _Steps(rng, clients, len(servers))
    calls = [draw.call(number) for number in range(1, 1 + rng.choice([5, 15, 25, 50]))]
    draw_event = draw.restart if rng.random() < 0.1 else draw.event
    events = [draw_event() for _ in range(rng.choice([0, 1, 2, 5, 10]))]
    return Plan(seed, codec, servers, clients, tuple(calls + events))


def _heartbeat(rng: Random) -> Heartbeat:
    return Heartbeat(interval=rng.choice([2.0, 5.0]), timeout=rng.choice([1.0, 2.0]))


def _server(rng: Random) -> Server:
    limits = ServerLimits(
        max_in_flight=rng.randint(1, 4),
        max_calls=rng.choice([PLACES, 10_000]),
        max_calls_per_principal=rng.choice([None, PLACES]),
        stream_window_items=rng.choice([1, 3, 8]),
        stream_window=rng.choice([64, 1024]),
        max_frame_size=16 * 1024,
        write_timeout=rng.choice([2.0, 10.0]),
        handshake_timeout=rng.choice([1.0, 5.0]),
        max_deadline=rng.choice([None, None, None, 2.5]),
        max_age=rng.choice([None, None, None, None, 3.0]),
        max_age_grace=rng.choice([None, 0.0, 1.0]),
        max_idle=rng.choice([None, None, None, None, 2.0]),
        orphan_window=ORPHAN_WINDOW,
        cancel_wait=rng.choice([0.0, 0.5, 1.0]),
        close_timeout=rng.choice([0.1, 1.0]),
    )
    adaptive = AdaptiveLimit(initial=PLACES, minimum=PLACES, maximum=50)
    return Server(limits, _heartbeat(rng), rng.choice([None, None, adaptive]))


def _client(rng: Random, servers: Sequence[Server]) -> Client:
    most = rng.randint(1, 3)
    limits = PoolLimits(
        min_connections=rng.choice([0, 0, 1, most]),
        max_connections=most,
        max_in_flight=rng.randint(1, 4),
        max_waiting=rng.choice([PLACES, 100]),
        autostart=rng.random() < 0.8,
        spread=rng.random() < 0.8,
        connect_timeout=rng.choice([0.5, 3.0]),
        acquire_timeout=rng.choice([1.0, 5.0, 20.0]),
        idle_timeout=rng.choice([0.0, 1.0, 600.0, 600.0, 600.0]),
        max_idle=rng.choice([None, None, None, None, 2.0]),
        max_lifetime=rng.choice([3.0, 3600.0, 3600.0, 3600.0, 3600.0]),
        validate_after=rng.choice([None, None, 0.5]),
        validate_timeout=0.5,
        slow_start=rng.choice([None, 2.0]),
        stream_window_items=rng.choice([1, 3, 8]),
        stream_window=rng.choice([64, 1024]),
        max_frame_size=16 * 1024,
        write_timeout=rng.choice([2.0, 10.0]),
        cancel_wait=rng.choice([0.0, 0.5, 1.0]),
        close_timeout=rng.choice([0.1, 1.0]),
        connect_backoff=QUICK,
    )
    capacity, latency = rng.choice([(200, 0.0), (200, 0.001), (2000, 0.05), (64 * 1024, 0.0), (64 * 1024, 0.05)])
    most_calls = min(server.limits.max_in_flight for server in servers)
    budget = RetryBudget(ratio=0.2, per_second=rng.choice([0.5, 10.0]))
    balances: list[Balance] = [LeastInFlight(), RoundRobin(), PowerOfTwo()]
    return Client(
        servers=_some(rng, len(servers)),
        resolved=rng.random() < 0.3,
        limits=limits,
        heartbeat=_heartbeat(rng),
        retry=RetryPolicy(
            attempts=rng.randint(1, 4),
            backoff=QUICK,
            budget=rng.choice([None, budget]),
            throttle=rng.choice([None, None, None, RetryThrottle(tokens=3)]),
        ),
        hedge=_hedge(rng, 0.1),
        balance=rng.choice(balances),
        ejection=rng.choice([None, EJECTION]),
        breaker=rng.choice([None, None, BREAKER]),
        checks_health=rng.random() < 0.2 and min(most_calls, limits.max_in_flight) > 1,
        prepares=rng.random() < 0.2,
        serves=rng.random() < 0.4,
        capacity=capacity,
        latency=latency,
    )


def _some(rng: Random, servers: int) -> tuple[int, ...]:
    return tuple(rng.sample(range(servers), rng.randint(1, servers)))


def _hedge(rng: Random, chance: float) -> HedgePolicy | None:
    return HedgePolicy(delay=rng.choice([0.0, 0.1, 0.5]), attempts=rng.randint(2, 4)) if rng.random() < chance else None


class _Steps:
    """Draws steps. Times are multiples of a tenth, so that many things happen at the same moment."""

    def __init__(self, rng: Random, clients: Sequence[Client], servers: int) -> None:
        self._rng, self._clients, self._servers = rng, clients, servers

    def _seconds(self, most: float) -> float:
        return self._rng.randint(0, int(most * 10)) / 10

    def call(self, number: int) -> Call:
        """One call."""
        rng = self._rng
        client = rng.randrange(len(self._clients))
        shape = rng.choice(SHAPES if self._clients[client].serves else [shape for shape in SHAPES if shape != "relay"])
        deadline = self._seconds(LONGEST) if rng.random() < 0.3 else None
        return Call(
            at=self._seconds(SPAN),
            number=number,
            client=client,
            shape=shape,
            takes=rng.choice([0.0, 0.0, 0.1, self._seconds(LONGEST)]),
            cleanup=rng.choice([0.0, 0.0, 0.1, self._seconds(LONGEST)]),
            items=rng.choice([0, 1, 5, 30]),
            size=rng.choice([0, 0, 10, 300, 30_000]) if rng.random() < 0.3 else 0,
            # No two deadlines are equal: Trio has no order for those that is the same in each run.
            deadline=None if deadline is None else deadline + number * 1e-7,
            cancelled_after=rng.choice([0.0, 0.1, self._seconds(LONGEST)]) if rng.random() < 0.3 else None,
            leaves_after=rng.choice([None, None, 0, 1, 3]),
            spoilt_after=rng.choice([None, None, None, 0, 4]),
            keyed=shape in KEYED and rng.random() < 0.3,
            hedge=_hedge(rng, 0.3) if shape == "again" else None,
            wait_for_ready=rng.choice([None, None, None, True, False]),
            priority=rng.choice([None, None, 0, 3]),
            routing_key=rng.choice([None, None, None, "a", "b"]),
        )

    def restart(self) -> Step:
        """A drain that no caller may notice."""
        rng = self._rng
        return Drain(self._seconds(SPAN), rng.randrange(self._servers), PEACE, rng.choice([None, 0.0, 0.1, 1.0]))

    def event(self) -> Step:
        """One fault, or one thing that somebody does beside calling."""
        rng, at = self._rng, self._seconds(SPAN)
        draws = [self._link_fault, self._host_event, self._client_event]
        return rng.choices(draws, [10, 7, 3])[0](at)

    def _link_fault(self, at: float) -> Step:
        rng, client = self._rng, self._rng.randrange(len(self._clients))
        where = at, client, rng.choice(self._clients[client].servers)
        directions = rng.choice([(0,), (1,), (0, 1)])
        match rng.choice("ffsslccc"):
            case "f":
                return Freeze(*where, directions, rng.choice([0.1, 0.5, 3.0, 20.0]))
            case "s":
                latency, most = rng.choice([0.0, 0.1, 0.5]), rng.choice([None, 10, 50])
                return Slow(*where, latency, most, 0.01, rng.choice([1.0, 6.0]))
            case "l":
                return Lose(*where, directions)
            case _:
                return Cut(*where, rng.choice([0, 1, 5, 20, 50, 200]))

    def _host_event(self, at: float) -> Step:
        rng, server = self._rng, self._rng.randrange(self._servers)
        match rng.choice("rddkka"):
            case "r":
                return Refuse(at, server, rng.choice([0.1, 1.0, 6.0]), rng.random() < 0.5)
            case "d":
                return Drain(at, server, rng.choice([0.0, 0.5, 10.0]), rng.choice([None, 0.0, 0.1, 1.0, 3.0]))
            case "a":
                return Ail(at, server, self._seconds(LONGEST))
            case _:
                return Kill(at, server, rng.choice([0.0, 0.1, 1.0, 6.0]))

    def _client_event(self, at: float) -> Step:
        rng, client = self._rng, self._rng.randrange(len(self._clients))
        if self._clients[client].resolved and rng.random() < 0.7:
            return Resolve(at, client, rng.choice([None, (), _some(rng, self._servers), _some(rng, self._servers)]))
        if rng.random() < 0.8:
            return Tend(at, client, rng.choice(["recycle", "check", "resize", "suspend"]), self._seconds(LONGEST))
        return Close(at, client, rng.choice([None, 0.0, 2.0]))
