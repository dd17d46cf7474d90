"""How a server parts with single connections: those that are too old, or idle, or whose credentials do not hold any more."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import trio

from ._ages import MAX_AGE, Ages
from ._config import ServerLimits
from ._connection import Connection
from ._expiry import EXPIRED, GRACE, Expiry
from ._statistics import ServerCounters

__all__ = ["Partings"]


class Partings:
    """Watches over the connections of one server, and sees off those whose time is over, each in a task of its own.

    Attributes:
        nursery: where these tasks run; None while the server does not: then they all end otherwise.
    """

    def __init__(self, limits: ServerLimits, counters: ServerCounters, draw: Callable[[], float]) -> None:
        self.nursery: trio.Nursery | None = None
        self._limits = limits
        self._counters = counters
        self._draw = draw

    def watch(self, connection: Connection) -> Callable[[], None]:
        """From now on, until what it returns is called: the connection has ended by itself."""
        limits = self._limits
        watches: list[Ages | Expiry] = []
        if limits.max_age is not None or limits.max_idle is not None:
            watches.append(Ages(connection, limits, self._draw, partial(self._retire, connection)))
        if connection.expires_at is not None:
            expired = partial(self.expire, connection, EXPIRED, GRACE)
            watches.append(Expiry(connection, connection.expires_at, expired))

        def stop() -> None:
            for watch in watches:
                watch.stop()

        return stop

    def expire(self, connection: Connection, reason: str, grace: float | None) -> None:
        """Take no calls there any more, which are told `reason`; handlers have `grace` seconds to end."""
        if self.nursery is not None and not connection.expired:
            self._counters.closed_expired += 1
            connection.expire(reason)
            self._see_off(connection, reason, grace)

    def _retire(self, connection: Connection, reason: str) -> None:
        if self.nursery is None or connection.draining:
            return
        grace: float | None = None
        if reason is MAX_AGE:
            self._counters.closed_age += 1
            grace = self._limits.max_age_grace
        else:
            self._counters.closed_idle += 1
        self._see_off(connection, reason, grace)

    def _see_off(self, connection: Connection, reason: str, grace: float | None) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(_part_with, connection, reason, grace, name="trio_rpc server parting with a connection")


async def _part_with(connection: Connection, reason: str, grace: float | None) -> None:
    """Drain one connection and close it: what was accepted is finished, or is cancelled after `grace` seconds.

    The peer closes first, as a drained peer does, unless it takes longer than `close_timeout`.
    """
    connection.drain(reason)
    with trio.move_on_after(math.inf if grace is None else grace):
        await connection.wait_quiet()
    connection.stop_serving(reason)
    with trio.move_on_after(connection.limits.cancel_wait):
        await connection.wait_quiet()
    with trio.move_on_after(connection.limits.close_timeout):
        await connection.wait_closed()
    connection.finish()
