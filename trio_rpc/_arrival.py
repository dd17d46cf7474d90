"""Whether what has begun to arrive goes on arriving: a pure decision, with the clock passed in.

Two rules, by which no peer can keep a part of a frame or of a message here for as long as it likes:

* A frame must be whole within `timeout` of its first byte. One of more than 64 KiB has as long for each 64 KiB of it:
  a slow link is no fault, and a large frame on it is judged like the chunks that this library would have sent.
* While messages in chunks are arriving, a part of any of them must come within `timeout` of the last one. Who sends
  them has all of them at hand, and chunks take turns with other frames: at 32 KiB/s, a batch of those (128 KiB) and a
  chunk (64 KiB) take 6 s.

Nothing is done for what arrives whole. When the time of something incomplete comes, it is asked whether it still is.
"""

from __future__ import annotations

import math

from ._heartbeat import Doubt
from .wire import CHUNK_SIZE, Protocol

__all__ = ["Arrival"]


class Arrival:
    """The watch over what arrives from one peer. `note` is told at each incomplete end; `look` is asked when `due` comes."""

    __slots__ = ("_begun_at", "_doubt", "_frame", "_piece", "_piece_at", "_protocol", "_timeout")

    def __init__(self, protocol: Protocol, timeout: float) -> None:
        self._protocol = protocol
        self._timeout = timeout
        self._doubt = Doubt(timeout)
        self._frame = self._piece = -1
        self._begun_at = self._piece_at = 0.0

    def note(self, now: float) -> None:
        """The bytes that arrived at `now` have ended within a frame, or with a part of a message."""
        protocol = self._protocol
        frame = protocol.frame
        if frame is not None and frame[0] != self._frame:
            self._frame, self._begun_at = frame[0], now
        if protocol.piece != self._piece:
            self._piece, self._piece_at = protocol.piece, now

    @property
    def due(self) -> float:
        """When the patience with what is arriving ends; `inf` if nothing is."""
        return min(self._frame_due, self._message_due)

    @property
    def _frame_due(self) -> float:
        frame = self._protocol.frame
        return math.inf if frame is None else self._begun_at + self._timeout * (1 + frame[1] // CHUNK_SIZE)

    @property
    def _message_due(self) -> float:
        return self._piece_at + self._timeout if self._protocol.receiving_messages else math.inf

    def look(self, now: float, lateness: float) -> float | str:
        """When to look again, `inf` for not at all; or why the peer is to be given up.

        `lateness`: how far this look is behind its time, or how long this side has not read.
        """
        due = self.due
        if now < due:
            self._doubt.dispelled()
            return due
        again_at = self._doubt.look_again(now, lateness)
        if again_at is not None:
            return again_at
        if self._frame_due <= now:
            return f"a frame that it began {now - self._begun_at:.1f} s ago is not whole (frame_timeout)"
        return f"a message of it has not gone on for {now - self._piece_at:.1f} s (frame_timeout)"
