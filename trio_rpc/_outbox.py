"""What waits to be written, in which order, and the one task that writes it.

Rules of this file:

1. Only the writer (`Outbox.run`) awaits the transport's sending side, outside every call's scope: a cancelled
   `send_all` leaves an unknown prefix on the wire, which on a shared stream is everyone's corruption. If it is
   interrupted while it sends, the connection is dead. While the writer has nothing in hand, `flush` may do its work in
   one step, on a socket that takes what it can without waiting.
2. Putting never waits. What bounds the queue is known at each caller: calls by `max_in_flight`, streams by credit,
   control frames by what they answer.
3. Control frames (ping, pong, credit, cancel, go-away) go first, then small frames in order, then one chunk of each
   large message in turn; a few chunks, as long as the transport takes what it is given at once. So nothing small
   waits behind more than one batch.
4. A transport that takes all it is given never makes the writer wait: after BURST_SIZE bytes the others have their turn.

The writer parks while there is nothing to do; a put reschedules it, and it runs once in the next scheduler tick and
takes all that the tick has gathered, joined into one buffer: a system call for each batch and not for each frame.

A put returns a *ticket*, the frame's number in line. As long as the writer has not taken it, `withdraw(ticket)` takes
it back unsent: a call that is cancelled then was never handed to the transport, and surely did not run.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

import trio
from trio.lowlevel import Abort, Task, checkpoint, current_task, reschedule, wait_task_rescheduled

from ._large import Large
from .wire import Bytes, Frames, frame_id, is_timed_request, restamp

__all__ = ["FULL", "Outbox"]

BATCH_SIZE = 128 * 1024
"""Bytes of small frames that go into one write; more only delays what comes next."""
BURST_SIZE = 512 * 1024
"""Bytes written without a turn for other tasks. Measured beside a 64 MiB message: else up to 8 ms without one."""
QUICK_CHUNKS = 4
"""Chunks in one write (256 KiB) unless the last one had to wait. Measured with 1 MiB echoes: 8 % more calls, CPU 0.8."""
FULL = 32
"""Frames that are not kept back any longer: the peer begins with them while this side goes on with what it does, so
that both work at the same time and not in turns. Measured with 64 callers: 1.6 times the calls; 16 frames are less, as
each write may have to wake the peer's process, which costs as much as several calls."""
STALE = 0.005
"""Seconds in the queue after which what is left of a request's deadline is written anew: a tenth of the slack that a
handler has beyond its caller."""


class Outbox:
    """The sending half of one connection."""

    __slots__ = (
        "_control",
        "_corked",
        "_finishing",
        "_frames",
        "_frames_bytes",
        "_held_up",
        "_on_taken",
        "_parked",
        "_reports",
        "_since",
        "_unsent",
        "deadline_of",
        "large",
        "most_at_once",
        "on_progress",
        "on_room",
        "progressed_at",
        "send_now",
        "taken",
    )

    def __init__(self, deadline_of: Callable[[int], float] = lambda _request_id: math.inf) -> None:
        self.on_progress: Callable[[], object] | None = None
        """Told after each write."""
        self.on_room: Callable[[], object] | None = None
        """Told after each write, too: set while streams wait for the queue to become shorter."""
        self.deadline_of: Callable[[int], float] = deadline_of
        """The deadline of a request in the queue, by its id."""
        self.send_now: Callable[[Bytes], int] | None = None
        """Sends without waiting what the transport takes at once, and tells how much; None if it has no such way."""
        self.progressed_at: float | None = None
        """When the transport last took bytes of the write under way; None while no write is under way."""
        self.taken: int = 0
        """Small frames handed to the transport so far: the next ticket to be taken."""
        self.most_at_once: float = math.inf
        """Bytes of large messages that are under way side by side, beside their first frames; a single one always is."""
        self._control: list[bytes] = []
        self._frames: list[bytes] = []
        self._frames_bytes = 0
        self.large: Large | None = None
        """Messages that go out in chunks, if there are any."""
        self._since = 0.0
        """Nothing in the queue is older than this."""
        self._on_taken: list[Callable[[], object]] = []
        self._held_up = False
        """The transport did not take the last batch with chunks at once."""
        self._parked: Task | Callable[[], object] | None = None
        """The writer while it has nothing to do, or what starts one."""
        self._corked: Task | Callable[[], object] | None = None
        """The same while it need not be woken."""
        self._unsent: list[Bytes] = []
        """What `flush` has taken and not sent."""
        self._reports: Sequence[Callable[[], object]] = ()
        """Those to be told when that has left."""
        self._finishing = False

    def __repr__(self) -> str:
        return (
            f"<Outbox: {len(self._control)} control and {len(self._frames)} small frames ({self.queued_bytes} bytes), "
            f"{0 if self.large is None else len(self.large.ids)} large messages>"
        )

    @property
    def queued_bytes(self) -> int:
        """Bytes waiting to be written, apart from control frames."""
        return self._frames_bytes if self.large is None else self._frames_bytes + self.large.size

    def is_beyond(self, most: int, request_id: int = 0) -> bool:
        """Whether more than `most` bytes are queued, without the largest message.

        However long that is under way, small calls pass it. What is queued for `request_id` itself counts in any case.
        """
        large, queued = self.large, self._frames_bytes
        if large is None:
            return queued > most
        queued += large.size
        return queued > most and queued - large.largest(but=request_id) > most

    def __len__(self) -> int:
        return len(self._control) + len(self._frames) + (self.large is not None) + len(self._unsent)

    # -- putting: synchronous, never refused ---------------------------------------------------------------------

    def put(self, frame: bytes) -> int:
        """Queue one small frame; return its ticket."""
        self._frames.append(frame)
        self._frames_bytes += len(frame)
        ticket = self.taken + len(self._frames) - 1
        if self._parked is not None:
            self._wake()
        elif len(self._frames) >= FULL:
            self.flush()
        return ticket

    def put_control(self, frame: bytes, on_taken: Callable[[], object] | None = None) -> None:
        """Queue a frame ahead of all others. `on_taken` is called when the transport has taken it."""
        self._control.append(frame)
        if on_taken is not None:
            self._on_taken.append(on_taken)
        if self._parked is not None:
            self._wake()

    def put_message(self, request_id: int, frames: Frames) -> int:
        """Queue a message of any size; return its first frame's ticket. Messages of one id keep their order."""
        ticket = None if self.large is None else self.large.follow(request_id, frames)
        if ticket is not None:
            return ticket
        first, rest = frames
        ticket = self.put(first)
        if rest is not None:
            if self.large is None:
                self.large = Large(self.most_at_once)
            self.large.add(request_id, ticket, frames)
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

    def stop_sending(self, request_id: int) -> bool:
        """Leave out what remains of a large message: its call has ended. False if nothing did."""
        ticket = None if self.large is None else self.large.drop(request_id)
        if ticket is None:
            return False
        if ticket >= self.taken:  # Its first frame would have the peer wait for the rest.
            self._blank(ticket - self.taken)
        self._drop_empty()
        return True

    def _drop_empty(self) -> None:
        if self.large is not None and not self.large.ids:
            self.large = None

    @property
    def idle(self) -> bool:
        """True if nothing waits and nothing is being written."""
        return not self and self.progressed_at is None

    def cork(self, now: float) -> None:
        """What is put from now on need not wake the writer: `flush` follows, in this step or before the next read."""
        if self._parked is not None:
            self._corked, self._parked = self._parked, None
            self._since = now

    def finish(self) -> None:
        """Write what is queued, then let `run` return."""
        self._finishing = True
        if self._corked is not None:
            self._parked, self._corked = self._corked, None
        if self._parked is not None:
            self._wake()

    def close(self) -> None:
        """The connection has ended: nothing more is taken of what is queued, and `run` returns."""
        self._control.clear()
        self._frames.clear()
        self.large = None
        self._unsent.clear()
        self._frames_bytes = 0
        if callable(self._corked or self._parked):  # There is no writer, and need not be one any more.
            self._corked = self._parked = None
        self.finish()

    def progressed(self) -> None:
        """The transport has taken some of the batch that is being written, and the rest has to wait."""
        self._held_up = True
        if self.progressed_at is not None:
            self.progressed_at = trio.current_time()

    # -- writing: one task ---------------------------------------------------------------------------------------

    def begin(self, start: Callable[[], object], *, flush: bool = True) -> None:
        """Send what is queued, unless more is about to follow, and a `flush`.

        There is no writer yet: `start` starts one when there is more than `flush` can do.
        """
        self._corked = start
        if flush:
            self.flush()

    def take_first(self) -> Bytes:
        """What was put before there is a writer: to be sent right behind the HELLO, by whoever says that."""
        if not self:
            return b""
        (data,) = self._take()
        self.progressed_at = None
        return data

    async def run(self, send: Callable[[list[Bytes]], Awaitable[None]]) -> None:
        """Write batches until `finish`; raises what the transport raises."""
        burst = 0
        while True:
            if burst >= BURST_SIZE:
                burst = 0
                await checkpoint()
                if not self:  # What was left has been stopped meanwhile: no write will tell of that room.
                    self._written(())
            if not self:
                burst = 0
                if self._finishing:
                    return
                self._parked = current_task()
                await wait_task_rescheduled(self._abandon)
            if not self:
                continue
            reports: Sequence[Callable[[], object]]
            if self._unsent:  # What was put since `flush` took it is not in it, nor told of yet.
                batch, reports = self._unsent, self._reports
                self._unsent, self._reports = [], ()
            else:
                batch = self._take()
                reports, self._on_taken = self._on_taken, []
            await send(batch)
            burst += sum(map(len, batch))
            self._written(reports)

    @trio.lowlevel.enable_ki_protection  # Between taking and sending, a Ctrl-C would lose frames of others.
    def flush(self, now: float | None = None) -> None:
        """Write now, without waiting for the writer's turn, if nothing is being written and nothing large waits.

        One send that neither waits nor can be cancelled; what it leaves is the writer's, and so is its error. Called
        where it is known that no other frame is about to follow. Measured: a scheduler tick less before the other
        side can begin; a single caller makes a quarter fewer calls without it. `now`: the time, where it is known.
        """
        corked, self._corked = self._corked, None
        if corked is not None:
            self._parked = corked
        if not (self._frames or self._control or self.large or self._unsent):
            return
        if self.send_now is not None and self.progressed_at is None and not self.large:
            self._send_now(self.send_now, now)
            if not (self._frames or self._control or self._unsent):
                return
        if self._parked is not None:
            self._wake()

    def _send_now(self, send: Callable[[Bytes], int], now: float | None) -> None:
        (data,) = self._take(now)
        reports, self._on_taken = self._on_taken, []
        try:
            sent = send(data)
        except OSError:
            sent = 0
        if sent == len(data):
            self._written(reports)
        else:
            self._unsent, self._reports = [memoryview(data)[sent:]], reports

    def _written(self, reports: Sequence[Callable[[], object]]) -> None:
        self.progressed_at = None
        for report in reports:
            report()
        if self.on_progress is not None:
            self.on_progress()
        if self.on_room is not None:
            self.on_room()

    def _take(self, now: float | None = None) -> list[Bytes]:
        """The next batch, in the order of rule 3."""
        if now is None:
            now = trio.current_time()
        frames = self._take_frames()
        if now - self._since > STALE:
            frames = [self._refreshed(frame, now) for frame in frames]
        if not self._frames:
            self._since = now
        self.progressed_at = now
        small, self._control = self._control + frames, []
        batch: list[Bytes] = [small[0] if len(small) == 1 else b"".join(small)] if small else []
        if self.large:
            for _ in range(1 if self._held_up else QUICK_CHUNKS):
                batch += self.large.next_chunk(self.taken)
            self._drop_empty()
            self._held_up = False
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
        return frames

    def _refreshed(self, frame: bytes, now: float) -> bytes:
        """A request that has waited here takes with it what is left of its deadline now."""
        if not is_timed_request(frame):
            return frame
        return restamp(frame, self.deadline_of(frame_id(frame)) - now)

    def _wake(self) -> None:
        writer, self._parked = self._parked, None
        assert writer is not None
        self._since = trio.current_time()
        if isinstance(writer, Task):
            reschedule(writer)
        else:
            writer()

    def _abandon(self, _raise_cancel: object) -> Abort:
        self._parked = self._corked = None
        return Abort.SUCCEEDED
