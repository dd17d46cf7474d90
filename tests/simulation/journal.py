"""What happened, in order."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import trio

__all__ = ["Journal"]


class Journal:
    """The events of one run. Equal runs have equal digests."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def note(self, *event: object) -> None:
        """Something happens now."""
        self.events.append((trio.current_time(), *event))

    @property
    def digest(self) -> str:
        """A hash of all events and their times."""
        return blake2b(repr(self.events).encode(), digest_size=8).hexdigest()

    def __str__(self) -> str:
        return "\n".join(f"{when:10.4f}  {' '.join(map(str, event))}" for when, *event in self.events)
