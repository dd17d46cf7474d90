"""Telling those who watch what happens, without ever waiting for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ._statistics import EventKind, PoolEvent

__all__ = ["Events"]


class Events:
    """Hands each event to all who watch. Who is too slow misses the newest, and is told how many."""

    def __init__(self) -> None:
        self._watchers: dict[trio.MemorySendChannel[PoolEvent], int] = {}
        """With how many each has missed."""
        self._ended = False

    def tell(self, kind: EventKind, endpoint: str | None, detail: str = "", error: BaseException | None = None) -> None:
        """Something has happened. Costs next to nothing while nobody watches."""
        if not self._watchers:
            return
        event = PoolEvent(kind=kind, endpoint=endpoint, time=trio.current_time(), detail=detail, error=error)
        for watcher, missed in list(self._watchers.items()):
            try:
                if missed:
                    text = f"{missed} events were missed"
                    watcher.send_nowait(
                        PoolEvent(kind="missed", endpoint=None, time=event.time, detail=text, error=None)
                    )
                    self._watchers[watcher] = 0
                watcher.send_nowait(event)
            except trio.WouldBlock:
                self._watchers[watcher] += 1
            except trio.BrokenResourceError:  # It was closed by its own reader.
                del self._watchers[watcher]

    @asynccontextmanager
    async def watch(self, buffer: int) -> AsyncIterator[trio.MemoryReceiveChannel[PoolEvent]]:
        """Receive what happens from now on; `buffer` events are kept for a reader who is busy."""
        sender, receiver = trio.open_memory_channel[PoolEvent](buffer)
        if self._ended:
            sender.close()
        else:
            self._watchers[sender] = 0
        try:
            async with receiver:
                yield receiver
        finally:
            self._watchers.pop(sender, None)
            sender.close()

    def end(self) -> None:
        """Nothing will happen any more."""
        self._ended = True
        for watcher in list(self._watchers):
            watcher.close()
        self._watchers.clear()
