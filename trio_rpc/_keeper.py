"""The nursery of a pool, and the tasks that it keeps there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context

import trio

__all__ = ["Keeper"]


class Keeper:
    """Starts tasks of long life, and knows when the last of them has ended.

    Each shields itself before its first checkpoint, and ends by itself after `close`: what goes on in them must go on
    while outside cancellation stops the calls, to tell the peers. `ended` is told once.
    """

    def __init__(self, name: str, ended: Callable[[], object]) -> None:
        self.closing: bool = False
        self.closed: trio.Event = trio.Event()
        """Everything has ended."""
        self._name = name
        self._ended = ended
        self._nursery: trio.Nursery | None = None
        self._tasks = 0

    @property
    def began(self) -> bool:
        """Tasks can be started."""
        return self._nursery is not None

    def begin(self, nursery: trio.Nursery) -> None:
        """Keep the tasks here."""
        self._nursery = nursery

    def start(self, function: Callable[[], Awaitable[object]], what: str) -> None:
        """Start a task, in a clean context and not in that of whoever happened to call first."""
        assert self._nursery is not None
        self._tasks += 1
        start, name = self._nursery.start_soon, f"trio_rpc pool {what} {self._name}"
        Context().run(lambda: start(self._keep, function, name=name))

    async def _keep(self, function: Callable[[], Awaitable[object]]) -> None:
        try:
            await function()
        finally:
            self._tasks -= 1
            if self.closing and not self._tasks:
                self.closed.set()
                self._ended()

    def owns(self, task: trio.lowlevel.Task) -> bool:
        """True for a task that runs in here: a handler that the peer calls back, a function that dials."""
        nursery = task.parent_nursery
        while nursery is not None and nursery is not self._nursery:
            nursery = nursery.parent_task.parent_nursery
        return nursery is not None
