"""One timer for a whole pool or server, which sleeps until the next due moment.

A task with its own timeout for each connection costs a core at a few thousand connections; a heap of due moments
costs nothing until one is due. There is no removal: an entry whose reason has gone finds that out when it is called.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import trio

__all__ = ["Timer"]


class Timer:
    """Calls synchronous functions at given times, in order; `run` is its one task."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[float], object]]] = []
        self._count = itertools.count()
        self._sleep = trio.CancelScope()

    def at(self, when: float, action: Callable[[float], object]) -> None:
        """Call `action(lateness)` once the clock shows `when` (`trio.current_time`); never from within this call."""
        heapq.heappush(self._heap, (when, next(self._count), action))
        if when < self._sleep.deadline:
            self._sleep.deadline = when

    @trio.lowlevel.enable_ki_protection  # Between two steps of an action, a Ctrl-C would leave half of it undone.
    async def run(self) -> None:
        """Run for ever; the owner cancels."""
        heap = self._heap
        while True:
            with trio.CancelScope(deadline=heap[0][0] if heap else math.inf) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            # Only what was due on waking: an action that puts in another for "now" gets a scheduler tick in between.
            due = []
            while heap and heap[0][0] <= now:
                due.append(heapq.heappop(heap))
            for when, _, action in due:
                action(now - when)
