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
from ._heartbeat import Action, Allowance, Doubt, Vigil
from ._outbox import Outbox
from ._timer import Moment, Timer
from .wire import Protocol

__all__ = ["Watch"]

PING_ALLOWANCE = 10
"""Pings beyond the announced rate before the peer is closed (reliability: 10 + 2/s)."""
PING_RATE = 2.0
MAX_OWED_PONGS = 16

MAX_QUESTIONS = 5
"""Pings that this side asks at once; half of what any peer allows, as they may arrive closer to each other."""

_STAMP = struct.Struct(">d")
"""A ping carries our own clock, so that its answer tells the round trip."""

Answered = Callable[[float], object]


class _Question:
    """A ping that somebody waits for, and those who wait for the next: one at a time, and no more than a peer allows."""

    __slots__ = ("answered", "budget", "data", "moment", "waiting")

    def __init__(self, now: float) -> None:
        self.data: bytes = b""
        """What the ping under way carries; empty while there is none."""
        self.answered: list[Answered] = []
        """To be told of its answer."""
        self.waiting: list[Answered] = []
        """To be told of the next one's: they asked when this one had been sent."""
        self.budget: Allowance = Allowance(MAX_QUESTIONS, now)
        self.moment: Moment | None = None


class Watch:
    """Tells `evict(text)` once, when the peer is to be given up."""

    __slots__ = (
        "_beats",
        "_evict",
        "_look_moment",
        "_outbox",
        "_owed_pongs",
        "_ping_budget",
        "_protocol",
        "_question",
        "_stamped_at",
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
        self._ping_budget = Allowance(PING_ALLOWANCE, now)
        self._question: _Question | None = None
        self._stamped_at = 0.0

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
        asking = None if self._question is None else self._question.moment
        for moment in (self._look_moment, self._write_moment, asking):
            if moment is not None:
                self._timer.forget(moment)
        self._question = None

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
            self._send_ping(now, self._ping_left)
        self._look_moment = self._timer.at(self._vigil.due(self._outbox.progressed_at), self._look)

    def _send_ping(self, now: float, on_taken: Callable[[], object] | None = None) -> bytes:
        """Send a ping that is like no other: its answer shall not be taken for that of an earlier one."""
        self._stamped_at = now if now > self._stamped_at else math.nextafter(self._stamped_at, math.inf)
        data = _STAMP.pack(self._stamped_at)
        self._outbox.cork(now)
        self._outbox.put_control(self._protocol.ping(data), on_taken)
        self._outbox.flush()
        return data

    def _ping_left(self) -> None:
        self._vigil.left(trio.current_time())

    def ping(self, answered: Answered) -> None:
        """Ask now, or once the ping under way is answered, or once the peer allows it; tell `answered` the round trip."""
        if self._question is None:
            self._question = _Question(trio.current_time())
        self._question.waiting.append(answered)
        self._ask(self._question)

    def _ask(self, question: _Question) -> None:
        if self._stopped or question.data or question.moment is not None or not question.waiting:
            return
        now = trio.current_time()
        delay = question.budget.delay(now, PING_RATE)
        if delay > 0:
            question.moment = self._timer.at(now + delay, self._ask_later)
            return
        question.budget.spend(now, PING_RATE)
        question.answered, question.waiting = question.waiting, []
        question.data = self._send_ping(now)

    def _ask_later(self, _lateness: float) -> None:
        question = self._question
        if question is not None:
            question.moment = None
            self._ask(question)

    def answered(self, data: bytes) -> None:
        """A PONG arrived."""
        (sent_at,) = _STAMP.unpack(data)
        rtt = trio.current_time() - sent_at
        if 0 <= rtt < math.inf:
            self.rtt = rtt if not self.rtt else self.rtt * 0.75 + rtt * 0.25
        question = self._question
        if question is not None and data == question.data:
            told, question.answered, question.data = question.answered, [], b""
            for answered in told:
                answered(rtt)
            self._ask(question)

    def answer(self, data: bytes, announced: float | None, *, in_turn: bool = False) -> None:
        """A PING arrived. Raises RemoteProtocolError if the peer pings far more often than it `announced`.

        `in_turn`: answer it behind the small frames that are in the queue, and not ahead of them.
        """
        now = trio.current_time()
        rate = PING_RATE + (1.0 / announced if announced else 0.0)
        self._owed_pongs += 1
        if not self._ping_budget.spend(now, rate) or self._owed_pongs > MAX_OWED_PONGS:
            raise RemoteProtocolError("too_many_pings: the peer pings far more often than its HELLO announced")
        pong = self._protocol.pong(data)
        if in_turn:
            self._outbox.put(pong)
            self._owed_pongs -= 1  # None tells when it has left; their rate bounds them.
        else:
            self._outbox.put_control(pong, self._pong_left)

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
