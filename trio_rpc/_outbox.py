"""What waits to be written, in which order, and the one task that writes it.

Rules of this file:

1. Only the writer (`Outbox.run`) touches the transport's sending side, outside every call's scope: a cancelled
   `send_all` leaves an unknown prefix on the wire, which on a shared stream is everyone's corruption. If it is
   interrupted while it sends, the connection is dead.
2. Putting never waits. What bounds the queue is known at each caller: calls by `max_in_flight`, streams by credit,
   control frames by what they answer.
3. Control frames (ping, pong, credit, cancel, go-away) go first, then small frames in order, then one chunk of each
   large message in turn. So nothing small waits behind more than one batch.

The writer parks while there is nothing to do; a put reschedules it, and it runs once in the next scheduler tick and
takes all that the tick has gathered, joined into one buffer: a system call for each batch and not for each frame.

A put returns a *ticket*, the frame's number in line. As long as the writer has not taken it, `withdraw(ticket)` takes
it back unsent: a call that is cancelled then was never handed to the transport, and surely did not run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator

import attrs
import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from .wire import Bytes, Frames, frame_id, message_size, restamp

__all__ = ["Outbox"]

BATCH_SIZE = 128 * 1024
"""Bytes of small frames that go into one write; more only delays what comes next."""
STALE = 0.001
"""Seconds in the queue after which a request's remaining time is written anew."""


@attrs.define
class _Large:
    """The chunks of one id's messages, and the ticket of the first frame that must go out before them."""

    ticket: int
    messages: deque[Iterator[list[Bytes]]]
    size: int = 0
    """Bytes left to be written; headers of chunks are not counted beforehand, so it is settled at the end."""


def _alone(frame: bytes) -> Iterator[list[Bytes]]:
    yield [frame]


class Outbox:
    """The sending half of one connection."""

    def __init__(self) -> None:
        self.on_progress: Callable[[], object] | None = None
        """Told after each write."""
        self.progressed_at: float | None = None
        """When the transport last took bytes of the write under way; None while no write is under way."""
        self.taken: int = 0
        """Small frames handed to the transport so far: the next ticket to be taken."""
        self._control: list[bytes] = []
        self._frames: list[bytes] = []
        self._frames_bytes = self._large_bytes = 0
        self._large: dict[int, _Large] = {}
        self._deadlines: list[tuple[int, float, float]] = []
        self._on_taken: list[Callable[[], object]] = []
        self._parked: Task | None = None
        self._finishing = False

    def __repr__(self) -> str:
        return (
            f"<Outbox: {len(self._control)} control and {len(self._frames)} small frames ({self.queued_bytes} bytes), "
            f"{len(self._large)} large messages>"
        )

    @property
    def queued_bytes(self) -> int:
        """Bytes waiting to be written, apart from control frames."""
        return self._frames_bytes + self._large_bytes

    @property
    def largest(self) -> int:
        """Bytes that are left of the largest message."""
        return max((large.size for large in self._large.values()), default=0)

    def __len__(self) -> int:
        return len(self._control) + len(self._frames) + len(self._large)

    # -- putting: synchronous, never refused ---------------------------------------------------------------------

    def put(self, frame: bytes) -> int:
        """Queue one small frame; return its ticket."""
        self._frames.append(frame)
        self._frames_bytes += len(frame)
        if self._parked is not None:
            self._wake()
        return self.taken + len(self._frames) - 1

    def put_control(self, frame: bytes, on_taken: Callable[[], object] | None = None) -> None:
        """Queue a frame ahead of all others. `on_taken` is called when the transport has taken it."""
        self._control.append(frame)
        if on_taken is not None:
            self._on_taken.append(on_taken)
        if self._parked is not None:
            self._wake()

    def put_message(self, request_id: int, frames: Frames) -> int:
        """Queue a message of any size; return its first frame's ticket. Messages of one id keep their order."""
        first, rest = frames
        large = self._large.get(request_id) if self._large else None
        if large is not None:
            # An earlier message of this stream is still going out in chunks; overtaking it would reorder the items.
            large.messages.append(_alone(first))
            if rest is not None:
                large.messages.append(rest)
            self._count_large(large, message_size(frames))
            return large.ticket
        ticket = self.put(first)
        if rest is not None:
            large = self._large[request_id] = _Large(ticket, deque([rest]))
            self._count_large(large, message_size(frames) - len(first))
        return ticket

    def put_request(self, request_id: int, frames: Frames, deadline: float | None) -> int:
        """Queue a request. With a deadline, the time left is written anew if it has to wait here."""
        ticket = self.put_message(request_id, frames)
        if deadline is not None:
            self._deadlines.append((ticket, deadline, trio.current_time()))
        return ticket

    def withdraw(self, request_id: int, ticket: int, *, streaming: bool = False) -> bool:
        """Take a request back, if the writer has not taken it. True: it was never handed to the transport.

        `streaming`: its items may be in line behind it, and are taken back with it.
        """
        place = ticket - self.taken
        if place < 0:
            return False
        self._blank(place)
        if streaming:
            # To the peer, an item of a request that never came would be a broken rule of the wire.
            for later in range(place + 1, len(self._frames)):
                if self._frames[later] and frame_id(self._frames[later]) == request_id:
                    self._blank(later)
        self.stop_sending(request_id)
        return True

    def _blank(self, place: int) -> None:
        self._frames_bytes -= len(self._frames[place])
        self._frames[place] = b""

    def stop_sending(self, request_id: int) -> None:
        """Leave out what remains of a large message: its call has ended."""
        large = self._large.pop(request_id, None) if self._large else None
        if large is not None:
            self._large_bytes -= large.size

    def finish(self) -> None:
        """Write what is queued, then let `run` return."""
        self._finishing = True
        if self._parked is not None:
            self._wake()

    def progressed(self) -> None:
        """The transport has taken some of the batch that is being written."""
        if self.progressed_at is not None:
            self.progressed_at = trio.current_time()

    # -- writing: one task ---------------------------------------------------------------------------------------

    async def run(self, send: Callable[[list[Bytes]], Awaitable[None]]) -> None:
        """Write batches until `finish`; raises what the transport raises."""
        while True:
            if not self:
                if self._finishing:
                    return
                self._parked = current_task()
                await wait_task_rescheduled(self._abandon)
            if not self:
                continue
            batch = self._take()
            reports, self._on_taken = self._on_taken, []
            self.progressed_at = trio.current_time()
            await send(batch)
            self.progressed_at = None
            for report in reports:
                report()
            if self.on_progress is not None:
                self.on_progress()

    def _take(self) -> list[Bytes]:
        """The next batch, in the order of rule 3."""
        if self._deadlines:
            self._refresh_deadlines()
        small = self._control + self._take_frames()
        self._control = []
        batch: list[Bytes] = [small[0] if len(small) == 1 else b"".join(small)] if small else []
        if self._large:
            batch += self._next_chunk()
        return batch

    def _take_frames(self) -> list[bytes]:
        frames = self._frames
        if self._frames_bytes <= BATCH_SIZE:
            self._frames = []
            self._frames_bytes = 0
        else:
            size = count = 0
            while size < BATCH_SIZE:
                size += len(frames[count])
                count += 1
            frames, self._frames = frames[:count], frames[count:]
            self._frames_bytes -= size
        self.taken += len(frames)
        if self._deadlines:
            self._deadlines = [entry for entry in self._deadlines if entry[0] >= self.taken] if self._frames else []
        return frames

    def _next_chunk(self) -> list[Bytes]:
        """One chunk of the message whose turn it is; then that message goes to the end of the ring."""
        request_id = next(iter(self._large))
        large = self._large.pop(request_id)
        if large.ticket >= self.taken:
            # The batch limit has left its first frame in line.
            self._large[request_id] = large
            return []
        while large.messages:
            for chunk in large.messages[0]:
                self._large[request_id] = large
                self._count_large(large, -sum(map(len, chunk)))
                return chunk
            large.messages.popleft()
        self._count_large(large, -large.size)
        return []

    def _count_large(self, large: _Large, change: int) -> None:
        large.size += change
        self._large_bytes += change

    def _refresh_deadlines(self) -> None:
        now = trio.current_time()
        waiting = self.taken + len(self._frames)
        for ticket, deadline, queued_at in self._deadlines:
            place = ticket - self.taken
            if now - queued_at > STALE and place >= 0 and ticket < waiting and self._frames[place]:
                self._frames[place] = restamp(self._frames[place], deadline - now)

    def _wake(self) -> None:
        task, self._parked = self._parked, None
        assert task is not None
        reschedule(task)

    def _abandon(self, _raise_cancel: object) -> Abort:
        self._parked = None
        return Abort.SUCCEEDED
