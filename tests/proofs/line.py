"""R18, S11, Rule 4: 10,000 callers before four places: served first come, first served, and any of them may go at any
moment.

The service runs in this process, so that what a caller's going meets is known from the public surface alone: it stood
in line if the line became shorter by it, was in flight if its handler had begun, and had been handed over, which is
the step between the two, if neither is so.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from trio.testing import MockClock

import trio_rpc
from trio_rpc.testing import open_loopback

from .report import Proof, Report, duration

__all__ = ["PROOF", "in_order"]

PLACES = 4
LIMITS = trio_rpc.PoolLimits(min_connections=PLACES, max_connections=PLACES, max_in_flight=1)
STAGES = ("in line", "handed over", "in flight")
CHANCE = 0.2
"""Of each reason to send somebody away, whenever it arises."""
PROBE = 3 * PLACES
"""Calls at once that show how many places there are in the end."""
PROBE_HOLD, PROBE_TIME = 0.2, 30.0
"""Seconds that each of these is kept, so that they meet, and that all may take."""
PATIENCE = 20
"""How many times longer than one by one, on a single place, all may take."""


class Window:
    """The service: holds each caller for a while. What it sees is kept."""

    def __init__(self, hold: float) -> None:
        self.seconds = hold
        self.begun: list[int] = []
        self.by_connection: defaultdict[object, list[int]] = defaultdict(list)
        self.running = self.peak = 0
        self.on_begin: Callable[[int], object] = lambda _number: None

    @trio_rpc.method
    async def hold(self, number: int) -> int:
        """Keep a caller."""
        self.begun.append(number)
        self.by_connection[current_peer()].append(number)
        self.running += 1
        self.peak = max(self.peak, self.running)
        self.on_begin(number)
        try:
            await trio.sleep(self.seconds)
        finally:
            self.running -= 1
        return number


def current_peer() -> object:
    """The connection that the current call came on, as the server sees it."""
    return trio_rpc.current_call().peer


class Line:
    """Callers, numbered in the order in which they came, and what became of each.

    Args:
        rng: sends callers away at random moments; None: all stay.
    """

    def __init__(self, window: Window, pool: trio_rpc.Pool, rng: random.Random | None) -> None:
        self.window = window
        self.pool = pool
        self.rng = rng
        self.scopes: list[trio.CancelScope] = []
        self.outcomes: dict[int, str] = {}
        self.times: dict[int, float] = {}
        self.stages: Counter[str] = Counter()
        self.left_in_line: set[int] = set()
        self._begun: set[int] = set()
        self._front = 0

    async def run(self, callers: int) -> None:
        """Let so many callers come at once; returns when all have gone."""
        async with trio.open_nursery() as watching:
            self.window.on_begin = partial(self._on_begin, watching)
            if self.rng is not None:
                watching.start_soon(self._send_away, self.rng)
            async with trio.open_nursery() as nursery:
                watching.start_soon(self._give_up, nursery.cancel_scope, PATIENCE * callers * self.window.seconds)
                for _ in range(callers):
                    nursery.start_soon(self._call)
            watching.cancel_scope.cancel()
        self.window.on_begin = lambda _number: None

    async def _give_up(self, scope: trio.CancelScope, seconds: float) -> None:
        """End those who would wait for ever. They have no outcome. A deadline would be one that the calls see."""
        await trio.sleep(seconds)
        scope.cancel()

    async def _call(self) -> None:
        number, scope = len(self.scopes), trio.CancelScope()
        self.scopes.append(scope)
        outcome = "cancelled"
        with scope:
            try:  # From the number to the line there is no checkpoint.
                answer = await self.pool.stub(Window, wait_for_ready=True).hold(number)
                outcome = "answered" if answer == number else f"answered {answer!r}"
            except trio_rpc.RpcError as exc:
                outcome = repr(exc)
        self.outcomes[number], self.times[number] = outcome, trio.current_time()
        if self.rng is not None and outcome == "answered":  # Its place has just been given to the first in line.
            self._maybe_cancel(self.rng, self._first_waiting())
            self._maybe_cancel(self.rng, self.rng.randrange(len(self.scopes)))

    def _on_begin(self, nursery: trio.Nursery, number: int) -> None:
        self._begun.add(number)
        if self.rng is not None and self.rng.random() < CHANCE:
            nursery.start_soon(self._cancel_later, number, self.rng.randrange(5) / 4 * self.window.seconds)

    async def _cancel_later(self, number: int, delay: float) -> None:
        await trio.sleep(delay)
        self._cancel(number)

    async def _send_away(self, rng: random.Random) -> None:
        """At random moments, which in virtual time are often those at which places become free."""
        while True:
            await trio.sleep(rng.randrange(1, 5) / 4 * self.window.seconds)
            self._maybe_cancel(rng, self._first_waiting())
            self._maybe_cancel(rng, rng.randrange(len(self.scopes)))

    def _maybe_cancel(self, rng: random.Random, number: int | None) -> None:
        if number is not None and rng.random() < CHANCE:
            self._cancel(number)

    def _first_waiting(self) -> int | None:
        while self._front < len(self.scopes):
            if self._front not in self._begun and not self.scopes[self._front].cancel_called:
                return self._front
            self._front += 1
        return None

    def _cancel(self, number: int) -> None:
        scope = self.scopes[number]
        if scope.cancel_called or number in self.outcomes:
            return
        waiting = self.pool.statistics().waiting
        scope.cancel()
        if number in self._begun:
            self.stages["in flight"] += 1
        elif self.pool.statistics().waiting < waiting:
            self.stages["in line"] += 1
            self.left_in_line.add(number)
        else:
            self.stages["handed over"] += 1


def overtaken(order: Sequence[int]) -> int:
    """How many who came earlier were served after one who came later, at most."""
    later: list[int] = []
    worst = 0
    for number in reversed(order):
        worst = max(worst, bisect_left(later, number))
        insort(later, number)
    return worst


# -- the worlds --------------------------------------------------------------------------------------------------------


def in_memory(window: Window) -> AbstractAsyncContextManager[trio_rpc.Pool]:
    """A pool over memory."""
    return open_loopback(window, limits=LIMITS)


@asynccontextmanager
async def on_sockets(window: Window) -> AsyncIterator[trio_rpc.Pool]:
    """A pool over TCP."""
    async with (
        trio_rpc.open_server(window, "tcp://127.0.0.1:0") as server,
        trio_rpc.open_pool(server.addresses[0], limits=LIMITS) as pool,
    ):
        yield pool


@dataclass(frozen=True)
class World:
    """Where a line stands: the wire, the clock, and how long a handler takes."""

    name: str
    opened: Callable[[Window], AbstractAsyncContextManager[trio_rpc.Pool]]
    hold: float
    virtual: bool

    def run(self, callers: int, rng: random.Random | None, report: Report) -> None:
        """Stand in line, and report."""
        clock = MockClock(autojump_threshold=0) if self.virtual else None
        trio.run(self._run, callers, rng, report, clock=clock)

    async def _run(self, callers: int, rng: random.Random | None, report: Report) -> None:
        window = Window(self.hold)
        async with self.opened(window) as pool:
            await pool.wait_connected(PLACES)
            line, start = Line(window, pool, rng), trio.current_time()
            await line.run(callers)
            seconds = trio.current_time() - start
            order, by_connection = list(window.begun), [list(each) for each in window.by_connection.values()]
            missing = await self._capacity(window, pool)
        name = f"{self.name}, {'any may go' if rng else 'all stay'}"
        answered = sum(outcome == "answered" for outcome in line.outcomes.values())
        report.rows.append(
            [
                name,
                f"{callers:,}",
                f"{answered:,}",
                *(f"{line.stages[stage]:,}" for stage in STAGES),
                str(overtaken(order)),
                missing or f"{PLACES} of {PLACES}",
                duration(seconds),
            ]
        )
        report.check(f"{name}: whoever came earlier was served earlier", in_order(order, by_connection))
        if self.virtual and rng is None:
            exact = all(line.times[number] - start == (number // PLACES + 1) * self.hold for number in range(callers))
            report.check(f"{name}: {PLACES} each second, and exactly the next {PLACES}", exact)
        others = {outcome for outcome in line.outcomes.values() if outcome not in {"answered", "cancelled"}}
        ended = len(line.outcomes) == callers and (rng is not None or answered == callers)
        report.check(f"{name}: each call was answered, rightly, or cancelled", ended and not others)
        report.details += sorted(others)[:5]
        if rng is not None:
            report.check(f"{name}: who left the line was not served", not line.left_in_line.intersection(order))
            report.check(f"{name}: some went at each stage", all(line.stages[stage] for stage in STAGES))
        report.check(f"{name}: all {PLACES} places are free afterwards", not missing)

    async def _capacity(self, window: Window, pool: trio_rpc.Pool) -> str:
        """See that every place is there again. "" if so, else what is not."""
        stats = pool.statistics()
        left: dict[str, Any] = {"waiting": stats.waiting, "in flight": stats.in_flight, "orphans": stats.orphans}
        left |= {"lost": stats.lost, "running": window.running, "places taken": PLACES - stats.spare}
        window.peak, window.seconds = 0, PROBE_HOLD
        with trio.move_on_after(PROBE_TIME):
            async with trio.open_nursery() as nursery:
                for number in range(PROBE):
                    nursery.start_soon(pool.stub(Window, wait_for_ready=True).hold, number)
        left["places missing"] = PLACES - window.peak
        return ", ".join(f"{what}: {count}" for what, count in left.items() if count)


def in_order(order: Sequence[int], by_connection: Sequence[Sequence[int]]) -> bool:
    """True if every connection served in order, and none was behind by more than what the others held."""
    return overtaken(order) < PLACES and all(list(numbers) == sorted(numbers) for numbers in by_connection)


def run(quick: bool, seed: int) -> Report:
    """Stand in line in memory and on sockets, first with patience."""
    columns = ["callers", "answered", *(f"gone {stage}" for stage in STAGES), "overtook", "free after", "time"]
    report = Report(["", *columns])
    worlds = (World("in memory", in_memory, 1.0, virtual=True), World("on sockets", on_sockets, 0.001, virtual=False))
    for world in worlds:
        for rng in (None, random.Random(seed)):
            world.run(500 if quick else 10_000, rng, report)
    return report


PROOF = Proof(
    "10,000 callers before 4 connections with max_in_flight=1: FIFO, all can be cancelled, no place lost", run
)
