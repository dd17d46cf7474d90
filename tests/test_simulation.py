"""Random programs of calls, cancellations, faults and drains, each on a virtual clock: what must hold in every one."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from hypothesis import given, strategies as st
from trio.testing import MockClock

import trio_rpc
from tests.scripted import watchdog
from trio_rpc import Backoff, PoolLimits, RetryPolicy, RpcError, ServerLimits, method
from trio_rpc.testing import FaultyStream, Freeze, MemoryListener, no_leaks

HEARTBEAT = trio_rpc.Heartbeat(interval=10, timeout=5)
LONGEST = 4.0
"""Seconds that any call is given, and that any handler takes."""

seconds = st.floats(0, LONGEST).map(lambda number: round(number, 2))


@attrs.frozen
class Start:
    """Start a call, of any shape; cancel it after some time, or leave it its whole time."""

    shape: str
    takes: float
    items: int
    cancelled_after: float | None


@attrs.frozen
class Sleep:
    """Let time pass."""

    seconds: float


@attrs.frozen
class Cut:
    """Reset one of the connections."""

    which: int


@attrs.frozen
class Stall:
    """Let nothing pass on any connection for some time; beyond the heartbeat's patience it costs them."""

    seconds: float


@attrs.frozen
class Drain:
    """Replace the server by another, which serves while the old one ends what it has accepted."""

    grace: float


Step = Start | Sleep | Cut | Stall | Drain
steps = st.one_of(
    st.builds(
        Start,
        shape=st.sampled_from(["once", "again", "count", "total", "double"]),
        takes=seconds,
        items=st.integers(0, 40),
        cancelled_after=st.none() | seconds,
    ),
    st.builds(Sleep, seconds),
    st.builds(Cut, st.integers(0, 3)),
    st.builds(Stall, st.sampled_from([0.5, 3.0, 20.0])),
    st.builds(Drain, st.sampled_from([0.0, 1.0, 10.0])),
)


class Ledger:
    """What ran, how often, and what runs now."""

    def __init__(self) -> None:
        self.runs: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.running = 0

    @asynccontextmanager
    async def run(self, number: int, takes: float) -> AsyncIterator[None]:
        self.runs[number] += 1
        self.running += 1
        try:
            await trio.sleep(takes)
            yield
            self.ended[number] += 1
        finally:
            self.running -= 1


class Simulated:
    """Served by every server of a program; all write into one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    @method
    async def once(self, number: int, takes: float) -> int:
        async with self.ledger.run(number, takes):
            return number

    @method(idempotent=True)
    async def again(self, number: int, takes: float) -> int:
        async with self.ledger.run(number, takes):
            return number

    @method
    async def count(self, number: int, takes: float, upto: int) -> AsyncGenerator[int, None]:
        async with self.ledger.run(number, takes / 2):
            for item in range(upto):
                yield item
            await trio.sleep(takes / 2)

    @method
    async def total(self, number: int, takes: float, items: AsyncIterable[int]) -> int:
        async with self.ledger.run(number, takes):
            return sum([item async for item in items])

    @method
    async def double(self, number: int, takes: float, items: AsyncIterable[int]) -> AsyncGenerator[int, None]:
        async with self.ledger.run(number, takes):
            async for item in items:
                yield 2 * item


@attrs.frozen
class Outcome:
    """How a call ended: with a result, with an error of the library's, or by its caller's scope."""

    kind: str
    value: Any = None


class Simulation:
    """Interprets one program."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.stall = Freeze()
        self.outcomes: dict[int, list[Outcome]] = {}
        self.listener = MemoryListener(wrap=self.wrap)
        self.server: trio_rpc.Server
        self.pool: trio_rpc.Pool

    def wrap(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        return FaultyStream(stream, self.stall)

    async def connect(self) -> trio.abc.Stream:
        return await self.listener.connect()

    async def start_server(self, servers: trio.Nursery) -> None:
        self.listener = MemoryListener(wrap=self.wrap)
        limits = ServerLimits(stream_window_items=8, max_in_flight=4)
        self.server = await servers.start(_serve, Simulated(self.ledger), self.listener, limits)

    async def run(self, program: list[Step], calls: trio.Nursery, servers: trio.Nursery) -> None:
        """Every step in turn; calls go on meanwhile."""
        for step in program:
            match step:
                case Start():
                    number = len(self.outcomes)
                    self.outcomes[number] = []
                    calls.start_soon(self.call, number, step)
                case Sleep(seconds):
                    await trio.sleep(seconds)
                case Cut(which) if self.listener.connections:
                    stream = self.listener.connections[which % len(self.listener.connections)]
                    assert isinstance(stream, FaultyStream)
                    await stream.reset()
                case Stall(seconds):
                    self.stall.freeze()
                    await trio.sleep(seconds)
                    self.stall.thaw()
                case Drain(grace):
                    old = self.server
                    await self.start_server(servers)
                    servers.start_soon(old.drain, grace)

    async def call(self, number: int, step: Start) -> None:
        """One call, and exactly one outcome of it."""
        patience = LONGEST * 10 if step.cancelled_after is None else step.cancelled_after
        with trio.move_on_after(patience) as scope:
            try:
                value = await self.make(number, step)
            except RpcError as exc:
                self.outcomes[number].append(Outcome("error", exc))
            else:
                self.outcomes[number].append(Outcome("result", value))
        if scope.cancelled_caught:
            self.outcomes[number].append(Outcome("cancelled"))

    async def make(self, number: int, step: Start) -> Any:
        """The call itself, over a stub."""
        stub = self.pool.stub(Simulated)
        match step.shape:
            case "once":
                return await stub.once(number, step.takes)
            case "again":
                return await stub.again(number, step.takes)
            case "total":
                return await stub.total(number, step.takes, _items(step.items))
            case "count":
                async with stub.count(number, step.takes, step.items) as received:
                    return [item async for item in received]
            case _:
                async with stub.double(number, step.takes, _items(step.items)) as received:
                    return [item async for item in received]

    def check(self, program: list[Step]) -> None:
        """What must hold of every call when all has ended."""
        starts = [step for step in program if isinstance(step, Start)]
        for number, step in enumerate(starts):
            (outcome,) = self.outcomes[number]
            runs, ended = self.ledger.runs[number], self.ledger.ended[number]
            if step.shape != "again":
                assert runs <= 1, "what may not run twice has not"
            if outcome.kind == "result":
                assert ended >= 1, "what is acknowledged was done"
                assert outcome.value == _expected(number, step), "and it is the whole result"
            if outcome.kind == "error":
                assert outcome.value.may_have_run or not runs, "nothing ran that surely did not run"
        assert self.ledger.running == 0


async def _serve(
    service: object,
    listener: MemoryListener,
    limits: ServerLimits,
    task_status: trio.TaskStatus[trio_rpc.Server],
) -> None:
    await trio_rpc.serve(service, listener, limits=limits, heartbeat=HEARTBEAT, task_status=task_status)


async def _items(upto: int) -> AsyncGenerator[int, None]:
    for item in range(upto):
        if item % 7 == 0:
            await trio.sleep(0.1)
        yield item


def _expected(number: int, step: Start) -> Any:
    match step.shape:
        case "count":
            return list(range(step.items))
        case "total":
            return sum(range(step.items))
        case "double":
            return [2 * item for item in range(step.items)]
        case _:
            return number


async def simulate(program: list[Step]) -> None:
    """Run a program, then ask whether the world is whole again."""
    limits = PoolLimits(
        max_connections=3,
        max_in_flight=3,
        acquire_timeout=10,
        idle_timeout=30,
        stream_window_items=8,
        connect_backoff=Backoff(initial=0.1, maximum=1, jitter=0),
    )
    retry = RetryPolicy(backoff=Backoff(initial=0.1, jitter=0))
    simulation = Simulation()
    async with watchdog(), no_leaks(), trio.open_nursery() as servers:
        await simulation.start_server(servers)
        async with trio_rpc.open_pool(simulation.connect, limits=limits, heartbeat=HEARTBEAT, retry=retry) as pool:
            simulation.pool = pool
            async with trio.open_nursery() as calls:
                await simulation.run(program, calls, servers)
            fresh = len(simulation.outcomes)
            with trio.fail_after(2 * (10 + 5)):
                assert await pool.stub(Simulated, wait_for_ready=True).once(fresh, 0.1) == fresh
            await trio.sleep(LONGEST)  # What was given up after `cancel_wait` ends by itself in that time.
            stats = pool.statistics()
            assert (stats.in_flight, stats.waiting, stats.orphans) == (0, 0, 0)
        servers.cancel_scope.cancel()
    simulation.check(program)


@given(st.lists(steps, min_size=1, max_size=25))
def test_any_program(program: list[Step]) -> None:
    """Each call has one outcome, nothing runs twice that may not, nothing is left, and a new call succeeds."""
    trio.run(simulate, program, clock=MockClock(autojump_threshold=0))
