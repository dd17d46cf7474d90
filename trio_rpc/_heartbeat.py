"""When to ping a silent peer and when to give it up: a pure decision, with the clock passed in.

Any inbound byte is life. After `interval` of silence a ping is due; `timeout` after that ping has *left*, with no
byte since, the peer is dead. Two things must not kill a healthy peer:

* Our own loop may have been late, with the answer already waiting in the socket. So nobody is evicted at first
  sight: the verdict is looked at again a few scheduler ticks later, after the reader has had its turn.
* The ping itself may have been late. If this side overslept by more than half a timeout, or the ping has not left
  while other bytes still do, the peer gets a full `timeout` after a ping that really left.
"""

from __future__ import annotations

import enum

from ._config import Heartbeat

__all__ = ["Action", "Allowance", "Doubt", "Vigil"]

LOOKS = 3
"""Scheduler ticks between the verdict and the eviction, so that whatever has arrived is read first."""
MIN_LATENESS = 0.2
"""Oversleeping by less than this is ordinary on a busy machine and is no reason to doubt the verdict."""
ROUNDING = 1e-6
"""Less than this of a ping is nothing."""


class Action(enum.Enum):
    """What to do now."""

    WAIT = "wait"
    PING = "ping"
    EVICT = "evict"


class Vigil:
    """The watch over one peer. `heard` and `left` are told as they happen; `decide` is asked when `due` comes."""

    __slots__ = ("_asked_at", "_doubted", "_heard_at", "_heartbeat", "_left_at", "_looks")

    def __init__(self, heartbeat: Heartbeat, now: float) -> None:
        self._heartbeat = heartbeat
        self._heard_at = now
        self._asked_at: float | None = None
        self._left_at: float | None = None
        self._looks = 0
        self._doubted = False

    @property
    def heard_at(self) -> float:
        """When the peer last gave a sign of life."""
        return self._heard_at

    def heard(self, now: float) -> None:
        """Some bytes arrived."""
        self._heard_at = now
        self._asked_at = None

    def left(self, now: float) -> None:
        """The transport took our ping."""
        if self._asked_at is not None and self._left_at is None:
            self._left_at = now

    def due(self, progressed_at: float | None = None) -> float:
        """When `decide` has to be asked next. `progressed_at`: when the transport last took bytes, if it is writing."""
        assert self._heartbeat.interval is not None
        if self._asked_at is None:
            return self._heard_at + self._heartbeat.interval
        since = self._left_at if self._left_at is not None else max(self._asked_at, progressed_at or self._asked_at)
        return since + self._heartbeat.timeout

    def decide(self, now: float, lateness: float, progressed_at: float | None = None) -> Action:
        """What is to be done at `now`, `lateness` seconds after this was due."""
        if now < self.due(progressed_at):
            return Action.WAIT
        if self._asked_at is None:
            self._doubted = False
            return self._ask(now)
        if lateness > max(MIN_LATENESS, self._heartbeat.timeout / 2) and not self._doubted:
            self._doubted = True
            return self._ask(now)
        self._looks += 1
        return Action.EVICT if self._looks > LOOKS else Action.WAIT

    def _ask(self, now: float) -> Action:
        self._asked_at, self._left_at, self._looks = now, None, 0
        return Action.PING


class Doubt:
    """Whether a write that made no progress for `timeout` seconds is the peer's fault: the same care as in a `Vigil`."""

    __slots__ = ("_looks", "_timeout")

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._looks = 0

    def dispelled(self) -> None:
        """There was progress."""
        self._looks = 0

    def look_again(self, now: float, lateness: float) -> float | None:
        """When to look once more, `lateness` seconds after the last look was due; None if there is no doubt left."""
        self._looks += 1
        if self._looks == 1 and lateness > max(MIN_LATENESS, self._timeout / 2):
            return now + self._timeout
        return now if self._looks <= LOOKS else None


class Allowance:
    """So many pings at once, and so many a second beyond: a bucket of tokens."""

    __slots__ = ("_at", "_left", "_most")

    def __init__(self, most: float, now: float) -> None:
        self._most = self._left = float(most)
        self._at = now

    def spend(self, now: float, rate: float) -> bool:
        """One more, at `rate` a second; False if that was one too many."""
        self._refill(now, rate)
        self._left -= 1
        return self._left >= 0

    def delay(self, now: float, rate: float) -> float:
        """How long until there is one to spend; 0 if there is."""
        self._refill(now, rate)
        missing = 1 - self._left
        return missing / rate if missing > ROUNDING else 0.0  # Else a timer could be set to this very moment, for ever.

    def _refill(self, now: float, rate: float) -> None:
        self._left = min(self._most, self._left + rate * (now - self._at))
        self._at = now
