"""One seed, or many: run, judge, and shrink."""

from __future__ import annotations

import logging
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import repeat

import attrs
import trio
from trio.testing import MockClock

from trio_rpc.testing import no_leaks

from .drawing import make_plan
from .journal import Journal
from .plan import Plan
from .plants import planted
from .scheduling import repeatable
from .verdict import judge
from .world import World

__all__ = ["Report", "command", "find_failures", "run_plan", "run_seed", "shrink"]

BLOCK = 50
"""Seeds that a process runs at a time."""
LONGEST_RUN = 60.0
"""Real seconds after which a run, which takes less than one, is taken for one that spins or sleeps for ever."""


@attrs.frozen
class Report:
    """What came of one plan."""

    plan: Plan
    journal: Journal
    failures: list[str]


def run_seed(seed: int) -> Report:
    """Live through the plan of one seed."""
    return run_plan(make_plan(seed))


def run_plan(plan: Plan, make_world: Callable[[Plan], World] = World) -> Report:
    """Live through one plan, in a run of Trio of its own, and judge what came of it."""
    world = make_world(plan)
    with repeatable(plan.seed), _errors_logged() as errors:
        try:
            with _bounded():
                trio.run(_live, world, clock=MockClock(autojump_threshold=0))
        except Exception as exc:
            text = "".join(traceback.format_exception(exc))
            errors.append("\n".join([*map(repr, _leaves(exc)), text]))
    failures = [*world.faults, *(judge(plan, world.outcomes, world.ledger) if not errors else ()), *errors]
    return Report(plan, world.journal, failures)


async def _live(world: World) -> None:
    async with no_leaks():
        await world.live()


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    """What a group is made of in the end, or what made Trio itself fail."""
    if isinstance(exc, trio.TrioInternalError) and exc.__cause__ is not None:
        yield from _leaves(exc.__cause__)
    elif isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


@contextmanager
def _bounded() -> Iterator[None]:
    """End a run in which virtual time stands still, so that none of its own deadlines comes."""

    def stop(*_args: object) -> None:
        raise AssertionError(f"no headway in {LONGEST_RUN} s of real time")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_RUN, 0.1)  # Again and again: the first may only end some task.
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _errors_logged() -> Iterator[list[str]]:
    """What the library logs as an error is one: nothing in a plan can be to blame for it."""
    errors: list[str] = []
    logger, handler = logging.getLogger("trio_rpc"), _Collector(errors)
    logger.addHandler(handler)
    try:
        yield errors
    finally:
        logger.removeHandler(handler)


class _Collector(logging.Handler):
    def __init__(self, errors: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(self.format(record))


def command(seed: int, plant: str | None = None) -> str:
    """What replays a seed."""
    return f"python -m tests.simulation --seed {seed}" + (f" --plant {plant}" if plant else "")


def find_failures(seeds: Sequence[int], plant: str | None = None, jobs: int = 1) -> Iterator[tuple[int, str]]:
    """Yield each seed that fails, with the first thing that did not hold; its first line says what."""
    if jobs == 1:
        with planted(plant):
            for seed in seeds:
                if failures := run_seed(seed).failures:
                    yield seed, failures[0]
        return
    with ProcessPoolExecutor(jobs) as executor:
        blocks = [seeds[start : start + BLOCK] for start in range(0, len(seeds), BLOCK)]
        for found in executor.map(_failures_in, blocks, repeat(plant)):
            yield from found


def _failures_in(seeds: Sequence[int], plant: str | None) -> list[tuple[int, str]]:
    return list(find_failures(seeds, plant))


def shrink(plan: Plan) -> Plan:
    """The same plan without the steps that its failure does not need."""
    size = len(plan.steps)
    while size:
        for start in range(len(plan.steps) - size, -1, -size):
            fewer = attrs.evolve(plan, steps=plan.steps[:start] + plan.steps[start + size :])
            if run_plan(fewer).failures:
                plan = fewer
        size = min(size // 2, len(plan.steps))
    return plan
