"""Messages that go out in chunks, one of each in turn, and how many of them may be incomplete at the peer.

The first frame of such a message stands in line with the small ones; here is what follows it. A peer says in its HELLO
how many bytes it bears of messages that have begun and not ended. What goes beyond is held back, first come, first
served, but for its first frame; a single message always goes out, whatever its size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain

import attrs

from .wire import Bytes, Frames, message_size

__all__ = ["Large"]


@attrs.define
class _Message:
    """What is to be written of a message."""

    rest: Iterator[list[Bytes]]
    size: int
    """All of it, written or not."""
    left: int
    """Bytes left to be written; headers are not counted beforehand, so it comes to 0 a little early, or at the end."""


@attrs.define
class _Line:
    """The messages of one id, and the ticket of the first frame that must go out before their chunks."""

    ticket: int
    messages: deque[_Message]
    """Of the first one some may have been written."""
    size: int = 0
    """Bytes left to be written of all."""

    @property
    def under_way(self) -> int:
        """Size of the message that is going out."""
        return self.messages[0].size


class Large:
    """The large messages of one outbox, which makes it for the first and drops it behind the last."""

    __slots__ = ("_held", "_most", "_ring", "_under_way", "size")

    def __init__(self, most: float) -> None:
        self._most = most
        """Bytes that are under way side by side."""
        self._ring: dict[int, _Line] = {}
        """Those whose chunks go out. Empty only if all is."""
        self._held: dict[int, _Line] = {}
        self._under_way = 0
        """Size of what is going out of the ring, written or not."""
        self.size: int = 0
        """Bytes left to be written."""

    @property
    def ids(self) -> list[int]:
        """Whose messages go out now, in turn; empty if there are none at all."""
        return list(self._ring)

    def add(self, request_id: int, ticket: int, frames: Frames) -> None:
        """One more, whose first frame has this ticket. It is the only one of its id."""
        first, rest = frames
        assert rest is not None
        size = message_size(frames)
        line = self._held[request_id] = _Line(ticket, deque())
        self._append(line, _Message(rest, size, max(0, size - len(first))))
        self._go_on()

    def follow(self, request_id: int, frames: Frames) -> int | None:
        """One of any size behind those of its id: overtaking them would reorder the items of a stream.

        Returns their ticket; None if there are none, and nothing is done.
        """
        line = self._ring.get(request_id) or self._held.get(request_id)
        if line is None:
            return None
        size = message_size(frames)
        self._append(line, _Message(_whole(frames), size, size))
        return line.ticket

    def drop(self, request_id: int) -> int | None:
        """Leave out what is left of an id's messages. Returns their ticket; None if nothing is left."""
        line = self._ring.pop(request_id, None)
        if line is not None:
            self._under_way -= line.under_way
        elif (line := self._held.pop(request_id, None)) is None:
            return None
        self.size -= line.size
        self._go_on()
        return line.ticket

    def largest(self, but: int) -> int:
        """Bytes that are left of the largest one of another id."""
        lines = chain(self._ring.items(), self._held.items())
        return max((line.size for id_, line in lines if id_ != but), default=0)

    def next_chunk(self, taken: int) -> list[Bytes]:
        """One chunk of the message whose turn it is; then that message goes to the end of the ring.

        Of those that the peer has been told of, as a batch may have left a first frame in line: `taken` is the first
        ticket that is not out. It waits for the rest of a message only for so long (`frame_timeout`), and not for those
        of others to begin.
        """
        while True:
            request_id = next((id_ for id_, line in self._ring.items() if line.ticket < taken), None)
            if request_id is None:
                return []
            line = self._ring.pop(request_id)
            for chunk in line.messages[0].rest:
                self._ring[request_id] = line
                self._written(line, sum(map(len, chunk)))
                return chunk
            self._end_message(request_id, line)

    def _end_message(self, request_id: int, line: _Line) -> None:
        """The first of its messages is out. Others of the same stream wait behind those that are held."""
        self._under_way -= line.under_way
        self._written(line, line.messages[0].left)
        line.messages.popleft()
        if line.messages:
            self._held[request_id] = line
        self._go_on()

    def _go_on(self) -> None:
        """Let out those that are held, as far as the peer takes them."""
        while self._held:
            request_id, line = next(iter(self._held.items()))
            if self._ring and self._under_way + line.under_way > self._most:
                return
            del self._held[request_id]
            self._ring[request_id] = line
            self._under_way += line.under_way

    def _append(self, line: _Line, message: _Message) -> None:
        line.messages.append(message)
        line.size += message.left
        self.size += message.left

    def _written(self, line: _Line, size: int) -> None:
        message = line.messages[0]
        size = min(size, message.left)
        message.left -= size
        line.size -= size
        self.size -= size


def _whole(frames: Frames) -> Iterator[list[Bytes]]:
    first, rest = frames
    yield [first]
    if rest is not None:
        yield from rest
