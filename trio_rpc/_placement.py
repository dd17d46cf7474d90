"""Which connection a call goes to, and how many more to dial: pure decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import attrs

__all__ = ["NamedPlace", "Route", "dials_wanted", "least_in_flight", "oldest_first"]


@attrs.define
class Route:
    """Where one call may go, beyond what its pool would choose; most calls have none."""

    key: str | None = None
    """Its routing key: calls of one key go to one endpoint."""
    avoid: list[str] = attrs.field(factory=list)
    """Addresses where it was tried already: taken only if there is no other."""
    home: str | None = None
    """The one address that it may go to."""
    instance: str | None = None
    """And the one server there: its successor would not know that the call may have run."""


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


class NamedPlace(Place, Protocol):
    """What is asked of an endpoint. No two have the same name."""

    @property
    def name(self) -> str:
        """What tells it from the others, in every process."""
        ...


P = TypeVar("P", bound=Place)


FEW = 16
"""So many connections are all looked at."""
CHOICES = 4


def least_in_flight(connections: Sequence[P], rng: Callable[[], float]) -> P | None:
    """The connection with the fewest calls under way that has a free place; the oldest of equals.

    Of more than FEW, the best of CHOICES random ones, so that a call costs the same in a pool of any size: by the power
    of two choices (Mitzenmacher, 1996) that is nearly as even. All are looked at if none of those has a place.
    """
    count = len(connections)
    if count > FEW:
        best = _best([connections[int(rng() * count)] for _ in range(CHOICES)])
        if best is not None:
            return best
    return _best(connections)


def oldest_first(connections: Sequence[P]) -> P | None:
    """The oldest connection that has a free place, so that what is not needed stays idle and can be closed."""
    return next((connection for connection in connections if connection.free > 0), None)


def _best(connections: Sequence[P]) -> P | None:
    best: P | None = None
    fewest = math.inf
    for connection in connections:
        in_flight = connection.in_flight
        if in_flight < fewest and connection.free > 0:
            if not in_flight:
                return connection
            best, fewest = connection, in_flight
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
