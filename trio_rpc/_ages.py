"""How old, and how idle, a server lets a connection become.

A connection that lasts for ever keeps its client at one server for ever: servers that are added later get nothing. So
a server may bound the age of connections, and drain each in its time. The ages differ by up to a tenth, as the
connections that were lost together by a restart have all begun together.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ._config import ServerLimits
from ._connection import Connection
from ._timer import Moment

__all__ = ["MAX_AGE", "MAX_IDLE", "Ages"]

MAX_AGE = "this connection has reached its max_age"
MAX_IDLE = "this connection was without a call for max_idle"
JITTER = 0.1
"""Share by which ages differ, either way (gRPC: 10 %)."""


class Ages:
    """Tells `retire(reason)`, once, when a connection has become too old, or has been without a call for too long."""

    __slots__ = ("_connection", "_idle_moment", "_idle_since", "_max_idle", "_moment", "_retire")

    def __init__(
        self,
        connection: Connection,
        limits: ServerLimits,
        draw: Callable[[], float],
        retire: Callable[[str], object],
    ) -> None:
        self._connection = connection
        self._retire = retire
        self._max_idle = limits.max_idle
        self._idle_since = trio.current_time()
        self._moment: Moment | None = None
        self._idle_moment: Moment | None = None
        if limits.max_age is not None:
            age = limits.max_age * (1 - JITTER + 2 * JITTER * draw())
            self._moment = connection.timer.at(connection.opened_at + age, lambda _lateness: self._end(MAX_AGE))
        if limits.max_idle is not None:
            connection.room_watchers.append(self._on_room)
            self._look_when_due(limits.max_idle)

    def stop(self) -> None:
        """The connection has ended, or is ending; the timer keeps nothing of it."""
        for moment in (self._moment, self._idle_moment):
            if moment is not None:
                self._connection.timer.forget(moment)
        self._max_idle = None

    def _end(self, reason: str) -> None:
        self.stop()
        self._retire(reason)

    def _on_room(self, connection: Connection) -> None:
        """A call has ended: if it was the last, the idle time begins, and not when bytes last arrived."""
        if self._max_idle is not None and not connection.busy:
            self._idle_since = trio.current_time()
            if self._idle_moment is None:
                self._look_when_due(self._max_idle)

    def _look_when_due(self, max_idle: float) -> None:
        self._idle_moment = self._connection.timer.at(self._idle_since + max_idle, self._look)

    def _look(self, _lateness: float) -> None:
        self._idle_moment = None
        if self._max_idle is None or self._connection.busy:
            return  # The last call's end begins anew.
        if trio.current_time() >= self._idle_since + self._max_idle:
            self._end(MAX_IDLE)
        else:
            self._look_when_due(self._max_idle)
