"""One timer for a whole pool or server, which sleeps until the next due moment.

A task with its own timeout for each connection costs a core at a few thousand connections; a heap of due moments
costs nothing until one is due. What has lost its reason is forgotten: it stays in the heap, but keeps nothing alive.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

__all__ = ["Moment", "Timer"]

Moment: TypeAlias = list[Any]
"""When, a running number so that equal times keep their order, and the action; None once it is forgotten."""

CROWD = 256
"""So many forgotten moments are let be; beyond, they are swept out when they are the most."""


class Timer:
    """Calls synchronous functions at given times, in order; `run` is its one task."""

    def __init__(self) -> None:
        self._heap: list[Moment] = []
        self._forgotten = 0
        self._count = itertools.count()
        self._sleep = trio.CancelScope()
        self._parked: Task | None = None
        self._stopped = False

    def at(self, when: float, action: Callable[[float], object]) -> Moment:
        """Call `action(lateness)` once the clock shows `when` (`trio.current_time`); never from within this call."""
        moment = [when, next(self._count), action]
        heapq.heappush(self._heap, moment)
        if when < self._sleep.deadline:
            self._sleep.deadline = when
        return moment

    def forget(self, moment: Moment) -> None:
        """The action is not called any more, and nothing is kept for it. No harm if it has been called."""
        if moment[2] is None:
            return
        moment[2] = None
        self._forgotten += 1
        if self._forgotten > CROWD and self._forgotten * 2 > len(self._heap):
            self._heap[:] = [moment for moment in self._heap if moment[2] is not None]
            heapq.heapify(self._heap)
            self._forgotten = 0

    def stop(self) -> None:
        """Let `run` return. Nothing is called any more."""
        self._stopped = True
        task, self._parked = self._parked, None
        if task is not None:
            reschedule(task)

    @trio.lowlevel.enable_ki_protection  # Between two steps of an action, a Ctrl-C would leave half of it undone.
    async def run(self, *, shield: bool = False) -> None:
        """Run until `stop`, or, unless it is to be shielded from that, until the owner cancels."""
        heap = self._heap
        while not self._stopped:
            with trio.CancelScope(deadline=self._next(), shield=shield) as self._sleep:
                self._parked = current_task()
                await wait_task_rescheduled(self._abort)
            now = trio.current_time()
            # Only what was due on waking: an action that puts in another for "now" gets a scheduler tick in between.
            due = []
            while heap and heap[0][0] <= now:
                due.append(heapq.heappop(heap))
            for moment in due:
                when, _, action = moment
                if action is None:
                    self._forgotten -= 1
                else:
                    moment[2] = None
                    action(now - when)
                    action = None  # The next one may be due in an hour, and this one is to be kept by nobody.

    def _next(self) -> float:
        heap = self._heap
        while heap and heap[0][2] is None:
            heapq.heappop(heap)
            self._forgotten -= 1
        due: float = heap[0][0] if heap else math.inf
        return due

    def _abort(self, _raise_cancel: object) -> Abort:
        self._parked = None
        return Abort.SUCCEEDED
