"""Callers under load: what each of them does, and what became of its calls."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count as count_from
from typing import TypeAlias

import trio

from .contract import Works
from .ledger import Executions
from .report import Report, milliseconds, percentile

__all__ = ["COLUMNS", "SHAPES", "Journal", "Load", "Shape", "WrongAnswer", "again", "bulk", "once"]

ITEMS = 8
"""Items of a stream."""
ITEM_PAUSE = 0.01
"""Seconds between the items that a caller sends, so that its stream lasts."""
LONGEST = 0.1
"""Seconds that a unary call takes at most; it is random how long."""
BULK = bytes(3 << 20)
END = 30.0
"""Seconds in which every call must have come back, once nobody makes further ones."""

Shape: TypeAlias = Callable[[Works, str, random.Random], Awaitable[object]]
"""`shape(stub, key, rng)` makes one call, and raises WrongAnswer if what comes is not what is due."""


class WrongAnswer(Exception):
    """A call got another call's answer, or not all of its own."""


def due(answer: object, expected: object) -> None:
    """Raise WrongAnswer for anything but the expected."""
    if answer != expected:
        raise WrongAnswer(f"{answer!r:.80} instead of {expected!r:.80}")


async def numbers() -> AsyncGenerator[int, None]:
    """The items that callers send."""
    for number in range(ITEMS):
        yield number
        await trio.sleep(ITEM_PAUSE)


async def once(stub: Works, key: str, rng: random.Random) -> None:
    """Not idempotent."""
    due(await stub.once(key, rng.uniform(0, LONGEST)), key)


async def again(stub: Works, key: str, rng: random.Random) -> None:
    """Idempotent."""
    due(await stub.again(key, rng.uniform(0, LONGEST)), key)


async def bulk(stub: Works, key: str, _rng: random.Random) -> None:
    """Not idempotent, and so large that the network cannot take it at once."""
    due(await stub.take(key, BULK), len(BULK))


async def total(stub: Works, key: str, _rng: random.Random) -> None:
    """A stream there."""
    due(await stub.total(key, numbers()), sum(range(ITEMS)))


async def count(stub: Works, key: str, _rng: random.Random) -> None:
    """A stream back."""
    async with stub.count(key, ITEMS) as counting:
        due([number async for number in counting], list(range(ITEMS)))


async def doubled(stub: Works, key: str, _rng: random.Random) -> None:
    """A stream each way."""
    async with stub.doubled(key, numbers()) as doubling:
        due([number async for number in doubling], [2 * number for number in range(ITEMS)])


SHAPES: dict[str, Shape] = {"once": once, "again": again, "total": total, "count": count, "doubled": doubled}


class Journal:
    """What the callers saw: of each call, which its key names, the latency or the error; neither if it never ended."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}
        self.latencies: dict[str, float] = {}
        self.errors: dict[str, Exception] = {}

    @contextmanager
    def entry(self, key: str) -> Iterator[None]:
        """Record how the block ends; an error ends here."""
        start = self.begun[key] = trio.current_time()
        try:
            yield
        except Exception as exc:
            self.errors[key] = exc
        else:
            self.latencies[key] = trio.current_time() - start

    def of(self, group: str) -> list[str]:
        """The keys of one group's calls."""
        return [key for key in self.begun if group_of(key) == group]

    def row(self, group: str) -> list[str]:
        """What a table says about one group: calls, answers, errors, latencies."""
        keys = self.of(group)
        latencies = [self.latencies[key] for key in keys if key in self.latencies]
        times = [milliseconds(percentile(latencies, share)) for share in (0.5, 0.99, 1)] if latencies else ["-"] * 3
        errors = sum(key in self.errors for key in keys)
        return [group, f"{len(keys):,}", f"{len(latencies):,}", f"{errors:,}", *times]

    def explain(self, report: Report, executions: Executions, keys: Iterable[str]) -> None:
        """Tell more about some calls that were not as they must be."""
        for key in list(keys)[:10]:
            error = self.errors.get(key)
            cause = f", caused by {error.__cause__!r}" if error is not None and error.__cause__ is not None else ""
            begun, ended = executions.begun[key], executions.ended[key]
            report.details.append(f"{key}: begun {begun} times, ended {ended} times; {error!r}{cause}")


COLUMNS = ["calls", "made", "answered", "errors", "p50", "p99", "longest"]
"""What the rows of a journal are under."""


def group_of(key: str) -> str:
    """The group of the caller whose call it is."""
    return key.partition(":")[0]


class Load:
    """Callers who call, rest, and call again, until they are stopped.

    Args:
        nursery: where they live.
        seed: decides what each of them does.
    """

    def __init__(self, nursery: trio.Nursery, seed: int) -> None:
        self.journal = Journal()
        self._nursery = nursery
        self._seed = seed
        self._stopped = False

    def add(self, group: str, shape: Shape, stubs: Iterable[Works], *, pause: float) -> None:
        """Add a caller for each stub, who rests for a random time, `pause` seconds in the mean."""
        for number, stub in enumerate(stubs):
            self._nursery.start_soon(self._keep_calling, f"{group}:{number}", shape, stub, pause)

    async def _keep_calling(self, caller: str, shape: Shape, stub: Works, pause: float) -> None:
        rng, calls = random.Random(f"{self._seed} {caller}"), count_from(1)
        while not self._stopped:
            key = f"{caller}.{next(calls)}"
            with self.journal.entry(key):
                await shape(stub, key, rng)
            await trio.sleep(rng.expovariate(1 / pause))

    def stop(self) -> None:
        """Let each caller end with the call that it makes. Who takes longer than `END` is cancelled."""
        self._stopped = True
        self._nursery.cancel_scope.deadline = trio.current_time() + END
