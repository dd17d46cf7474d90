"""When to ping a silent peer and when to give it up: a pure decision, with the clock passed in.

Any inbound byte is life. After `interval` of silence a ping is due; `timeout` after that ping has *left*, with no
byte since, the peer is dead. Two things must not kill a healthy peer:

* Our own loop may have been late, with the answer already waiting in the socket. So nobody is evicted at first
  sight: the verdict is looked at again a few scheduler ticks later, after the reader has had its turn.
* The ping itself may have been late. If this side overslept by more than half a timeout, or the ping has not left
  while other bytes still do, the peer gets a full `timeout` after a ping that really left.
* What has left may still be in our kernel, behind bulk on a slow link, where nothing overtakes it. While the bytes
  ahead of it are acknowledged, it is on its way (`Crossing`).
"""

from __future__ import annotations

import enum

from ._config import Heartbeat

__all__ = ["BULK", "Action", "Crossing", "Doubt", "Vigil"]

LOOKS = 3
"""Scheduler ticks between the verdict and the eviction, so that whatever has arrived is read first."""
MIN_LATENESS = 0.2
"""Oversleeping by less than this is ordinary on a busy machine and is no reason to doubt the verdict."""

BULK = 4 * 1024
"""Less than this ahead of a ping does not delay it: it is an eighth of a second at 256 kbit/s."""


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

    def still_leaving(self, now: float) -> None:
        """The ping that the transport took is on its way, and comes nearer: its time begins anew."""
        self._left_at, self._looks = now, 0

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


class Crossing:
    """A ping on its way to the peer's machine, behind bulk that our kernel had taken before it.

    Counted in bytes that the peer's machine has acknowledged. It does so without the peer's program; so this is no
    life, and all that it delays is the moment from which the ping's `timeout` runs.
    """

    __slots__ = ("_end", "_seen")

    def __init__(self, acknowledged: int, under_way: float) -> None:
        self._end = acknowledged + under_way
        self._seen = acknowledged

    def goes_on(self, acknowledged: int) -> bool:
        """Whether it has come nearer since it was last asked, and had not been there then."""
        goes_on = self._seen < self._end and self._seen < acknowledged
        self._seen = acknowledged
        return goes_on


class Doubt:
    """Whether it is the peer's fault that something made no progress for `timeout` seconds: the same care as in a `Vigil`."""

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
