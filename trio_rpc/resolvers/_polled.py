"""What is looked at again and again, as nothing tells when it has changed."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import attrs
import trio

from .._backoff import delay_before
from .._checks import brief
from .._endpoint import Endpoint, Endpoints, endpoints
from .._logs import limited
from .._policies import Backoff
from .._text import described

__all__ = ["Polled", "Resolver", "checked_seconds"]

log = limited(logging.getLogger("trio_rpc.resolvers"))

REFRESH_GAP = 1.0
"""Seconds between the starts of two looks that a pool asked for: many connections are often lost at once."""

Resolver: TypeAlias = AsyncIterable[Endpoints]
"""Any async iterable of whole sets of addresses and `Endpoint`s."""


class Polled:
    """A resolver that asks `look` for the whole set every `interval` seconds, and yields it when it has changed.

    A look that fails ends nothing: what it raised is logged, once per change, and it is tried again with gRPC's
    back-off, but at least every `interval`. Nothing is yielded meanwhile, so the last answer holds. The order of a set
    is no change.

    Args:
        look: an async function that returns the whole set as it is now.
        interval: seconds from the start of one look to the start of the next.
        name: what logs and errors call it.
        timeout: seconds after which a look is cancelled and counts as failed; None for no bound.

    Attributes:
        problem: why the latest look failed, in a sentence; None if it did not.
        watchers: functions that are called with `problem` after each look that failed.
        rng: yields numbers in [0, 1), which spread the back-off.
    """

    def __init__(
        self,
        look: Callable[[], Awaitable[Endpoints]],
        *,
        interval: float,
        name: str = "",
        timeout: float | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        if not callable(look):
            raise TypeError(f"look must be an async function that returns the whole set, not {brief(look)}")
        self.look = look
        self.interval: float = checked_seconds("interval", interval)
        self.timeout: float = math.inf if timeout is None else checked_seconds("timeout", timeout)
        self.name: str = name or getattr(look, "__qualname__", repr(look))
        self.rng = rng
        self.problem: str | None = None
        self.watchers: list[Callable[[str], object]] = []
        self._backoff = attrs.evolve(Backoff(), maximum=min(Backoff().maximum, interval))
        self._asked = 0
        self._bell = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return self.name

    def __aiter__(self) -> AsyncIterator[tuple[Endpoint, ...]]:
        return _Watch(self)

    def refresh(self) -> None:
        """Look again at once, or a second after the latest look began; while looks fail, their back-off holds."""
        self._asked += 1
        self._bell.unpark_all()

    async def _find(self) -> tuple[Endpoint, ...]:
        with trio.move_on_after(self.timeout):
            return endpoints(await self.look())
        raise TimeoutError(f"no answer within {self.timeout:g} s")

    def _note(self, error: Exception | None, *, first: bool) -> None:
        problem = None if error is None else f"{self.name}: {_words(error)}"
        known, self.problem = self.problem, problem
        if problem is None:
            if known is not None:
                log.info("%s: resolved again", self.name)
            return
        for watcher in self.watchers:
            watcher(problem)
        if problem != known:
            expected = isinstance(error, OSError | ValueError)
            after = "" if first else "; the last answer stays"
            log.warning("%s%s", problem, after, exc_info=None if expected else error)


class _Watch(AsyncIterator[tuple[Endpoint, ...]]):
    """One iteration. It holds no task and no generator: dropped at any point, it leaves nothing behind."""

    def __init__(self, resolver: Polled) -> None:
        self._resolver = resolver
        self._latest: tuple[Endpoint, ...] | None = None
        self._failures = 0
        self._started_at = self._next_at = -math.inf
        self._heard = resolver._asked

    async def __anext__(self) -> tuple[Endpoint, ...]:
        while True:
            await self._wait()
            # Before the look: what was asked for during it may concern a change that it does not see any more.
            self._started_at, self._heard = trio.current_time(), self._resolver._asked
            found = await self._look()
            if found is not None and (self._latest is None or set(found) != set(self._latest)):
                self._latest = found
                return found

    async def _wait(self) -> None:
        while (due := self._due()) > trio.current_time():
            with trio.move_on_at(due):
                await self._resolver._bell.park()

    def _due(self) -> float:
        if self._failures or self._heard == self._resolver._asked:
            return self._next_at
        return min(self._next_at, self._started_at + REFRESH_GAP)

    async def _look(self) -> tuple[Endpoint, ...] | None:
        resolver = self._resolver
        try:
            found = await resolver._find()
        except Exception as exc:  # A function of the user's, or a hostname resolver, may raise anything.
            self._failures += 1
            self._next_at = self._started_at + delay_before(self._failures + 1, resolver._backoff, resolver.rng)
            resolver._note(exc, first=self._latest is None)
            return None
        self._failures = 0
        self._next_at = self._started_at + resolver.interval
        resolver._note(None, first=self._latest is None)
        return found


def _words(error: Exception) -> str:
    """The system's own words without number and path; the names of classes only where they say something."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, OSError | ValueError) else described(error)


def checked_seconds(name: str, value: float) -> float:
    """A time that is more than 0 and finite. Raises ValueError, or TypeError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {brief(value)}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be more than 0 seconds and finite, not {value!r}")
    return value
