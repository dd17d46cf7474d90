"""The watch over one peer: pings, their answers, and writes and arrivals that make no progress.

It decides when to give the peer up. The decisions are pure and stand in `_heartbeat` and `_arrival`; here they meet the
clock, the outbox and the one timer of the pool or server. Nothing here waits.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import trio

from ._allowance import Allowance
from ._arrival import Arrival
from ._config import Heartbeat, Limits
from ._errors import RemoteProtocolError
from ._heartbeat import BULK, Action, Crossing, Doubt, Vigil
from ._outbox import Outbox
from ._sockets import SocketStream
from ._timer import Moment, Timer
from .wire import Protocol

__all__ = ["Watch"]

MAX_OWED_PONGS = 16
"""Answers that the transport has not taken yet (reliability: 16)."""
QUICKEST_RHYTHM = 0.01
"""What a peer announces is allowed for, down to one ping in so many seconds; `Heartbeat` has no shorter interval."""
MAX_UNANSWERED = 16
"""Pings of ours whose answers are told from invented ones. A peer need not answer: any byte is life."""

MAX_QUESTIONS, QUESTION_RATE = 5, 2.0
"""Pings that this side asks at once, and a second; at once half of what a peer allows by default, as they may arrive
closer to each other."""

LAST_STRETCH = 0.1
"""The part of `write_timeout` in which acknowledgements show that a write is slow, and not stuck."""

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
        "_arrival",
        "_arrival_moment",
        "_beats",
        "_crossing",
        "_evict",
        "_limits",
        "_look_moment",
        "_outbox",
        "_owed_in_turn",
        "_owed_pongs",
        "_ping_budget",
        "_protocol",
        "_question",
        "_stamped_at",
        "_stopped",
        "_timer",
        "_unanswered",
        "_vigil",
        "_write_crossing",
        "_write_doubt",
        "_write_moment",
        "_write_timeout",
        "is_busy",
        "rtt",
        "socket",
    )

    def __init__(
        self,
        outbox: Outbox,
        protocol: Protocol,
        timer: Timer,
        heartbeat: Heartbeat,
        *,
        limits: Limits,
        evict: Callable[..., object],
    ) -> None:
        now = trio.current_time()
        self.is_busy: Callable[[], bool] = _never
        """Whether this side has something else to do before it reads on."""
        self.rtt: float = 0.0
        """The smoothed round trip, in seconds; 0 until the first answer."""
        self.socket: SocketStream | None = None
        """What all bytes go through, if that is a socket."""
        self._outbox = outbox
        self._protocol = protocol
        self._timer = timer
        self._beats = heartbeat.interval is not None
        self._vigil = Vigil(heartbeat, now)
        self._crossing: Crossing | None = None
        self._limits = limits
        self._write_timeout = limits.write_timeout
        self._write_doubt = Doubt(limits.write_timeout or 0.0)
        self._write_crossing: Crossing | None = None
        self._arrival: Arrival | None = None  # Made when it is needed: most of what arrives is whole.
        self._look_moment: Moment | None = None
        self._write_moment: Moment | None = None
        self._arrival_moment: Moment | None = None
        self._evict = evict
        self._stopped = False
        self._owed_pongs = 0
        self._owed_in_turn: tuple[int, ...] = ()
        self._ping_budget = Allowance(limits.ping_budget, now)
        self._unanswered: tuple[bytes, ...] = ()
        self._question: _Question | None = None
        self._stamped_at = 0.0

    @property
    def heard_at(self) -> float:
        """When the peer last gave a sign of life."""
        return self._vigil.heard_at

    def start(self) -> None:
        """Watch from now on."""
        if self._limits.frame_timeout is not None:  # Until now that was the handshake's business.
            self._protocol.on_incomplete = self._arriving
            if self._protocol.frame is not None or self._protocol.receiving_messages:
                self._arriving()
        if self._beats:
            self._look_moment = self._timer.at(self._vigil.due(), self._look)

    def stop(self) -> None:
        """The connection has ended; the timer keeps nothing of it."""
        self._stopped = True
        asking = None if self._question is None else self._question.moment
        for moment in (self._look_moment, self._write_moment, self._arrival_moment, asking):
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
        if action is Action.EVICT and self._crossing is not None and self._crossing.goes_on(self.acknowledged):
            self._vigil.still_leaving(now)
        elif action is Action.EVICT:
            self._evict(f"no sign of life for {now - self._vigil.heard_at:.1f} s")
            return
        if action is Action.PING:
            in_line = self.socket is not None and self._outbox.progressed_at is not None
            self._crossing = Crossing(self.acknowledged, math.inf) if in_line else None
            self._send_ping(now, self._ping_left)
        self._look_moment = self._timer.at(self._vigil.due(self._outbox.progressed_at), self._look)

    def _send_ping(self, now: float, on_taken: Callable[[], object] | None = None) -> bytes:
        """Send a ping that is like no other: its answer shall not be taken for that of an earlier one."""
        self._stamped_at = now if now > self._stamped_at else math.nextafter(self._stamped_at, math.inf)
        data = _STAMP.pack(self._stamped_at)
        self._unanswered = (*self._unanswered[1 - MAX_UNANSWERED :], data)
        self._outbox.cork(now)
        self._outbox.put_control(self._protocol.ping(data), on_taken)
        self._outbox.flush()
        return data

    def _ping_left(self) -> None:
        self._vigil.left(trio.current_time())
        under_way = 0 if self.socket is None else self.socket.under_way
        self._crossing = Crossing(self.acknowledged, under_way) if under_way > BULK else None

    @property
    def acknowledged(self) -> int:
        """Bytes that the peer's machine has acknowledged; 0 where that is not to be had."""
        return 0 if self.socket is None else self.socket.acknowledged

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
        delay = question.budget.delay(now, QUESTION_RATE)
        if delay > 0:
            question.moment = self._timer.at(now + delay, self._ask_later)
            return
        question.budget.spend(now, QUESTION_RATE)
        question.answered, question.waiting = question.waiting, []
        question.data = self._send_ping(now)

    def _ask_later(self, _lateness: float) -> None:
        question = self._question
        if question is not None:
            question.moment = None
            self._ask(question)

    def answered(self, data: bytes) -> bool:
        """A PONG arrived; False if it answers no ping of ours, or one that has been answered."""
        if data not in self._unanswered:
            return False
        self._unanswered = tuple(other for other in self._unanswered if other != data)
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
        return True

    def answer(self, data: bytes, announced: float | None, *, in_turn: bool = False) -> None:
        """A PING arrived. Raises RemoteProtocolError if the peer pings far more often than it `announced`.

        `in_turn`: answer it behind the small frames that are in the queue, and not ahead of them.
        """
        now = trio.current_time()
        rate = self._limits.ping_rate + (1.0 / max(announced, QUICKEST_RHYTHM) if announced else 0.0)
        if self._owed_in_turn:
            self._owed_in_turn = tuple(ticket for ticket in self._owed_in_turn if ticket >= self._outbox.taken)
        owed = self._owed_pongs + len(self._owed_in_turn)
        if not self._ping_budget.spend(now, rate) or owed >= MAX_OWED_PONGS:
            raise RemoteProtocolError("too_many_pings: the peer pings far more often than its HELLO announced")
        pong = self._protocol.pong(data)
        if in_turn:
            self._owed_in_turn += (self._outbox.put(pong),)
        else:
            self._owed_pongs += 1
            self._outbox.put_control(pong, self._pong_left)

    def _pong_left(self) -> None:
        self._owed_pongs -= 1

    # -- writes ----------------------------------------------------------------------------------------------------

    def writing(self) -> None:
        """A write begins. One look is always enough: it finds out whether that or a later write is stuck."""
        if self._write_moment is None and self._write_timeout is not None:
            self._look_at_writing(trio.current_time() + self._write_timeout, self._write_timeout)

    def _look_at_writing(self, when: float, timeout: float) -> None:
        self._write_doubt.dispelled()
        self._write_crossing = None
        if self.socket is None:
            self._write_moment = self._timer.at(when, self._check_write)
        else:
            self._write_moment = self._timer.at(when - timeout * LAST_STRETCH, self._note_progress)

    def _note_progress(self, _lateness: float) -> None:
        """A socket's kernel takes more only once much has gone; so on a slow link, acknowledgements are progress too."""
        self._write_moment = None
        progressed_at, timeout = self._outbox.progressed_at, self._write_timeout
        if self._stopped or progressed_at is None or timeout is None:
            return
        now, due, stretch = trio.current_time(), progressed_at + timeout, timeout * LAST_STRETCH
        if now < due - stretch:
            self._look_at_writing(due, timeout)
        else:
            self._write_crossing = Crossing(self.acknowledged, math.inf)
            self._write_moment = self._timer.at(max(due, now + stretch), self._check_write)

    def _check_write(self, lateness: float) -> None:
        self._write_moment = None
        progressed_at, timeout = self._outbox.progressed_at, self._write_timeout
        if self._stopped or progressed_at is None or timeout is None:
            return
        now, due = trio.current_time(), progressed_at + timeout
        if now < due:
            self._look_at_writing(due, timeout)
            return
        if self._write_crossing is not None and self._write_crossing.goes_on(self.acknowledged):
            self._look_at_writing(now + timeout, timeout)
            return
        again_at = self._write_doubt.look_again(now, lateness)
        if again_at is None:
            self._evict(f"it took no bytes for {timeout:g} s (write_timeout)")
        else:
            self._write_moment = self._timer.at(again_at, self._check_write)

    # -- arrivals --------------------------------------------------------------------------------------------------

    def _arriving(self) -> None:
        """What was heard last has ended within a frame or a message. Again, one look at a time is enough."""
        if self._stopped:
            return
        if self._arrival is None:
            assert self._limits.frame_timeout is not None
            self._arrival = Arrival(self._protocol, self._limits.frame_timeout)
        self._arrival.note(self._vigil.heard_at)
        if self._arrival_moment is None:
            self._look_at_arrival(self._arrival.due)

    def _look_at_arrival(self, when: float) -> None:
        if when < math.inf:
            self._arrival_moment = self._timer.at(when, self._check_arrival)

    def _check_arrival(self, lateness: float) -> None:
        self._arrival_moment = None
        if self._stopped or self._arrival is None:
            return
        verdict = self._arrival.look(trio.current_time(), math.inf if self.is_busy() else lateness)
        if isinstance(verdict, str):
            self._evict(verdict, tell=True)
        else:
            self._look_at_arrival(verdict)


def _never() -> bool:
    return False
