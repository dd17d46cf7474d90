"""Credentials that expire while their connection is in use: how a server parts with it in time.

A little before, the connection drains: an honest pool opens another one with fresh credentials, and its callers notice
nothing. Who is still there when they expire is refused from that very moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from ._connection import Connection
from ._timer import Moment

__all__ = ["EXPIRED", "GRACE", "REVOKED", "Expiry"]

EXPIRED: Final = "the credentials of this connection have expired"
EXPIRING: Final = "the credentials of this connection are about to expire"
REVOKED: Final = "the credentials of this connection were revoked"

MARGIN = 10.0
"""Seconds between the drain and the expiry: time for what was begun, and to dial another connection. Of credentials
that hold for less than ten times as long, a tenth of that."""
GRACE = 10.0
"""Seconds that running handlers have left after the expiry: as long as a drain gives."""


class Expiry:
    """Drains the connection, then tells `expired()`, once."""

    __slots__ = ("_connection", "_expired", "_expires_at", "_moment")

    def __init__(self, connection: Connection, expires_at: float, expired: Callable[[], object]) -> None:
        self._connection = connection
        self._expires_at = expires_at
        self._expired = expired
        margin = min(MARGIN, (expires_at - trio.current_time()) / 10)
        self._moment: Moment = connection.timer.at(expires_at - margin, self._part)

    def stop(self) -> None:
        """The connection has ended; the timer keeps nothing of it."""
        self._connection.timer.forget(self._moment)

    def _part(self, _lateness: float) -> None:
        self._connection.drain(EXPIRING)
        self._moment = self._connection.timer.at(self._expires_at, lambda _lateness: self._expired())
