"""The watch over one peer: pings, their answers, and writes that make no progress. It decides when to give it up.

The decisions are pure and stand in `_heartbeat`; here they meet the clock, the outbox and the one timer of the pool or
server. Nothing here waits.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import trio

from ._config import Heartbeat
from ._errors import RemoteProtocolError
from ._heartbeat import Action, Doubt, Vigil
from ._outbox import Outbox
from ._timer import Moment, Timer
from .wire import Protocol

__all__ = ["Watch"]

PING_ALLOWANCE = 10
"""Pings beyond the announced rate before the peer is closed (reliability: 10 + 2/s)."""
PING_RATE = 2.0
MAX_OWED_PONGS = 16

_STAMP = struct.Struct(">d")
"""A ping carries our own clock, so that its answer tells the round trip."""


class Watch:
    """Tells `evict(text)` once, when the peer is to be given up."""

    __slots__ = (
        "_beats",
        "_evict",
        "_look_moment",
        "_outbox",
        "_owed_pongs",
        "_ping_budget",
        "_ping_budget_at",
        "_protocol",
        "_stopped",
        "_timer",
        "_vigil",
        "_write_doubt",
        "_write_moment",
        "_write_timeout",
        "rtt",
    )

    def __init__(
        self,
        outbox: Outbox,
        protocol: Protocol,
        timer: Timer,
        heartbeat: Heartbeat,
        *,
        write_timeout: float | None,
        evict: Callable[[str], object],
    ) -> None:
        now = trio.current_time()
        self.rtt: float = 0.0
        """The smoothed round trip, in seconds; 0 until the first answer."""
        self._outbox = outbox
        self._protocol = protocol
        self._timer = timer
        self._beats = heartbeat.interval is not None
        self._vigil = Vigil(heartbeat, now)
        self._write_timeout = write_timeout
        self._write_doubt = Doubt(write_timeout or 0.0)
        self._look_moment: Moment | None = None
        self._write_moment: Moment | None = None
        self._evict = evict
        self._stopped = False
        self._owed_pongs = 0
        self._ping_budget, self._ping_budget_at = float(PING_ALLOWANCE), now

    @property
    def heard_at(self) -> float:
        """When the peer last gave a sign of life."""
        return self._vigil.heard_at

    def start(self) -> None:
        """Watch from now on."""
        if self._beats:
            self._look_moment = self._timer.at(self._vigil.due(), self._look)

    def stop(self) -> None:
        """The connection has ended; the timer keeps nothing of it."""
        self._stopped = True
        for moment in (self._look_moment, self._write_moment):
            if moment is not None:
                self._timer.forget(moment)

    # -- pings, both ways ------------------------------------------------------------------------------------------

    def heard(self) -> float:
        """Some bytes arrived; returns the time that it is."""
        now = trio.current_time()
        self._vigil.heard(now)
        return now

    def _look(self, lateness: float) -> None:
        if self._stopped:
            return
        now = trio.current_time()
        action = self._vigil.decide(now, lateness, self._outbox.progressed_at)
        if action is Action.EVICT:
            self._evict(f"no sign of life for {now - self._vigil.heard_at:.1f} s")
            return
        if action is Action.PING:
            self._outbox.cork(now)
            self._outbox.put_control(self._protocol.ping(_STAMP.pack(now)), self._ping_left)
            self._outbox.flush()
        self._look_moment = self._timer.at(self._vigil.due(self._outbox.progressed_at), self._look)

    def _ping_left(self) -> None:
        self._vigil.left(trio.current_time())

    def answered(self, data: bytes) -> None:
        """A PONG arrived."""
        (sent_at,) = _STAMP.unpack(data)
        rtt = trio.current_time() - sent_at
        if 0 <= rtt < math.inf:
            self.rtt = rtt if not self.rtt else self.rtt * 0.75 + rtt * 0.25

    def answer(self, data: bytes, announced: float | None) -> None:
        """A PING arrived. Raises RemoteProtocolError if the peer pings far more often than it `announced`."""
        now = trio.current_time()
        rate = PING_RATE + (1.0 / announced if announced else 0.0)
        self._ping_budget = min(PING_ALLOWANCE, self._ping_budget + rate * (now - self._ping_budget_at)) - 1
        self._ping_budget_at = now
        self._owed_pongs += 1
        if self._ping_budget < 0 or self._owed_pongs > MAX_OWED_PONGS:
            raise RemoteProtocolError("too_many_pings: the peer pings far more often than its HELLO announced")
        self._outbox.put_control(self._protocol.pong(data), self._pong_left)

    def _pong_left(self) -> None:
        self._owed_pongs -= 1

    # -- writes ----------------------------------------------------------------------------------------------------

    def writing(self) -> None:
        """A write begins. One look is always enough: it finds out whether that or a later write is stuck."""
        if self._write_moment is None and self._write_timeout is not None:
            self._look_at_writing(trio.current_time() + self._write_timeout)

    def _look_at_writing(self, when: float) -> None:
        self._write_moment = self._timer.at(when, self._check_write)

    def _check_write(self, lateness: float) -> None:
        self._write_moment = None
        progressed_at, timeout = self._outbox.progressed_at, self._write_timeout
        if self._stopped or progressed_at is None or timeout is None:
            self._write_doubt.dispelled()
            return
        now, due = trio.current_time(), progressed_at + timeout
        if now < due:
            self._write_doubt.dispelled()
            self._look_at_writing(due)
            return
        again_at = self._write_doubt.look_again(now, lateness)
        if again_at is None:
            self._evict(f"it took no bytes for {timeout:g} s (write_timeout)")
        else:
            self._look_at_writing(again_at)
