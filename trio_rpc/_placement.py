"""Which connection a call goes to, and how many more to dial: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

__all__ = ["dials_wanted", "least_in_flight"]


class Place(Protocol):
    """What is asked of a connection."""

    @property
    def free(self) -> int:
        """Places left; 0 where no new call may begin."""
        ...

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        ...


P = TypeVar("P", bound=Place)


def least_in_flight(connections: Sequence[P]) -> P | None:
    """The connection with the fewest calls under way that has a free place; the oldest of equals."""
    best: P | None = None
    for connection in connections:
        if connection.free > 0 and (best is None or connection.in_flight < best.in_flight):
            best = connection
    return best


def dials_wanted(*, ready: int, dialling: int, waiting: int, least: int, most: int, failing: bool = False) -> int:
    """How many connections to dial now.

    Always up to the minimum. Beyond it one at a time, and only while somebody waits (gRPC's A105): a burst of callers
    that the connections at hand will serve soon must not open a connection for each. While dials fail, one at a time
    is enough to find out when they do not any more.
    """
    below = max(0, least - ready - dialling)
    if below and not failing:
        return below
    if failing:
        return 1 if (below or waiting) and not dialling and ready < most else 0
    return 1 if waiting and not dialling and ready < most else 0
