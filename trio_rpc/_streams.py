"""The two halves of a stream: items that arrive, and items that go out, each with credit.

Credit is per stream, in bytes and items. The sender may send while it has some of both, and may overdraw by the one
batch that uses it up, so that an item larger than the window still passes. The receiver grants again what its
consumer has *taken*: a slow consumer stops its own producer and nobody else, and what is buffered for it stays below
window + one batch.

Items travel in batches. A batch grows while the producer makes items without a suspension and while they stay small;
it is decoded in the consumer's task, so a bad payload costs its own call. Between two batches either side gives the
scheduler a turn: what a batch costs beside its items is as much as 20 of these. So it holds many items as long as they
are quick, and fewer if either side works on them for more than RUN_SECONDS.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, final

import trio
from trio.lowlevel import Abort, Task, checkpoint, current_task, reschedule, wait_task_rescheduled

from ._errors import DecodeError, EncodeError, RemoteProtocolError
from ._generators import Stopped
from .wire import CHUNK_SIZE, Bytes, Data, ItemsReceived

__all__ = ["Outbound", "ReceiveStream"]

T = TypeVar("T")

Decode = Callable[[Data, Sequence[bytes]], "list[Any]"]
Encode = Callable[["list[Any]"], "tuple[bytes, Sequence[Bytes]]"]

BATCH_BYTES = 16 * 1024
"""A batch is cut to about this size: a quarter of the default window, so that sending and consuming overlap."""
GRANTS = 4
"""Credit goes back in this many parts of a window, so that the producer goes on while the consumer does. Measured with
small items: in halves 1.19 million items/s, in quarters 1.45 million; in smaller parts no more."""
BATCH_ITEMS = 256
"""The most items in one go, of a generator that never waits and of a consumer that never does. Measured with small items:
64 give 1.0 million items/s, 128 give 1.35, and 256 give 1.45."""
FIRST_RUN, RUN_SECONDS = 16, 0.002
"""A consumer's first go; and how long one should take at most, as that of the crew's leader."""


class _Parking:
    """A place for one task to wait in."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: Task | None = None

    async def wait(self) -> None:
        self.task = current_task()
        await wait_task_rescheduled(self._leave)

    def wake(self) -> None:
        task, self.task = self.task, None
        if task is not None:
            reschedule(task)

    def _leave(self, _raise_cancel: object) -> Abort:
        self.task = None
        return Abort.SUCCEEDED


class CreditGranter(Protocol):
    """What a receiving half needs of its connection."""

    def grant(self, request_id: int, size: int, items: int) -> None:
        """Send CREDIT."""


@final
class ReceiveStream(trio.abc.ReceiveChannel[T], Generic[T]):
    """The items of a stream, as they arrive: a `trio.abc.ReceiveChannel`.

    `receive` raises EndOfChannel at the end, the peer's error if the stream failed, `trio.ClosedResourceError` after
    the block was left, `trio.BusyResourceError` if two tasks receive at once. It is a checkpoint once in 256 items at
    least, and more often if the consumer works on these for more than 2 ms.

    Attributes:
        metadata: what the producer sent along so far (its `reply_metadata`).
    """

    def __init__(self, request_id: int, window: int, window_items: int, decode: Decode) -> None:
        self.metadata: dict[str, str | bytes] = {}
        self._id = request_id
        self._window, self._window_items = window, window_items
        self._decode = decode
        self._granter: CreditGranter | None = None
        self._batches: deque[ItemsReceived] = deque()
        self._items: deque[T] = deque()
        """Decoded, and to be had without a checkpoint."""
        self._later: deque[T] = deque()
        """Decoded, and to be had behind the next one."""
        self._run = FIRST_RUN
        self._run_began = math.inf
        self._current: ItemsReceived | None = None
        self._unconsumed = self._unconsumed_items = 0
        self._owed = self._owed_items = 0
        self._ended: BaseException | None = None
        self._closed = False
        self._parking = _Parking()
        self._receiving = False
        self.fed: bool = False
        """True once any item has arrived."""
        self.delivered: bool = False
        """True once `receive` has raised what ended the stream."""

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ended" if self._ended is not None else "open"
        return f"<ReceiveStream {self._id}: {state}, {self._unconsumed_items} items ({self._unconsumed} bytes) waiting>"

    async def receive(self) -> T:
        """The next item."""
        items = self._items
        if len(items) > 1:  # The usual case. Nobody else can be waiting here: whoever fills it takes the first at once.
            return items.popleft()
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving from this stream")
        self._receiving = True
        try:
            await self._next_batch()
        finally:
            self._receiving = False
        return self._pop()

    async def __anext__(self) -> T:
        items = self._items
        if len(items) > 1:  # As in `receive`, and not by it: a coroutine within another is half of an item's cost.
            return items.popleft()
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Take no more items. The call itself is ended by leaving its block."""
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Drop what is buffered; synchronous."""
        self._closed = True
        self._batches.clear()
        self._items.clear()
        self._later.clear()
        self._unconsumed = self._unconsumed_items = 0
        self._parking.wake()

    async def _next_batch(self) -> None:
        """Fill `_items`, or raise what ended the stream."""
        parked = False
        quick = trio.current_time() - self._run_began < RUN_SECONDS
        while not self._items:
            if self._closed:
                await checkpoint()
                raise trio.ClosedResourceError("this stream's block was left")
            if (self._later or self._batches) and not parked:
                await checkpoint()  # Before anything is taken: a cancelled receive loses nothing.
                parked = True
            elif self._later or self._batches:
                if not self._later:
                    self._open_batch(self._batches.popleft())
                self._begin_run(quick)
            elif self._ended is not None:
                await checkpoint()
                self.delivered = True
                raise self._ended
            else:
                await self._parking.wait()
                parked = True

    def _begin_run(self, quick: bool) -> None:
        self._run = min(BATCH_ITEMS, self._run * 2) if quick else max(1, self._run // 2)
        if len(self._later) <= self._run:
            self._items, self._later = self._later, self._items
        else:
            self._items.extend([self._later.popleft() for _ in range(self._run)])
        self._run_began = trio.current_time()

    def _open_batch(self, batch: ItemsReceived) -> None:
        self._current = batch
        try:
            items = self._decode(batch.payload, batch.blobs)
            if len(items) != batch.count:  # Credit goes by what the frame says.
                raise DecodeError(f"$: {len(items)} items in a batch that announced {batch.count}")
            self._later.extend(items)
        except Exception as exc:
            self._ended = exc  # Instead of an end that has arrived already: what the stream lacks must not look whole.
            self._batches.clear()
            raise

    def _pop(self) -> T:
        item = self._items.popleft()
        if not self._items and not self._later:
            self._consumed()
        return item

    def _consumed(self) -> None:
        """The consumer took the last item of a batch: grant it again, in shares of a window."""
        batch, self._current = self._current, None
        if batch is None or self._ended is not None:
            return
        self._unconsumed -= batch.size
        self._unconsumed_items -= batch.count
        self._owed += batch.size
        self._owed_items += batch.count
        due = self._owed * GRANTS >= self._window or self._owed_items * GRANTS >= self._window_items
        if due and self._granter is not None:
            self._granter.grant(self._id, self._owed, self._owed_items)
            self._owed = self._owed_items = 0

    # -- told by the connection's reader: synchronous --------------------------------------------------------------

    def decode_with(self, decode: Decode) -> None:
        """How to read the batches; known once the request is."""
        self._decode = decode

    def failed_with(self, exc: BaseException) -> bool:
        """True if this very error is what this stream's own payload caused."""
        return exc is self._ended

    def attach(self, granter: CreditGranter, request_id: int) -> None:
        """Credit goes to `granter`, under this id."""
        self._granter, self._id = granter, request_id

    def add_metadata(self, metadata: Mapping[str, str | bytes], most: int) -> None:
        """What came along with items, or with the end. Of all that comes in one stream `most` entries are kept."""
        for key, value in metadata.items():
            if len(self.metadata) < most or key in self.metadata:
                self.metadata[key] = value

    def feed(self, batch: ItemsReceived) -> bool:
        """A batch arrived; False if nobody wants it. Raises RemoteProtocolError if the peer had no credit for it."""
        if self._closed or self._ended is not None:
            return False
        if (
            self._unconsumed + self._owed >= self._window
            or self._unconsumed_items + self._owed_items >= self._window_items
        ):
            raise RemoteProtocolError(f"the peer sent items of request {batch.id} without credit")
        self.fed = True
        self._unconsumed += batch.size
        self._unconsumed_items += batch.count
        self._batches.append(batch)
        self._parking.wake()
        return True

    def end(self, reason: BaseException) -> bool:
        """No more will come: EndOfChannel, or the error that ends the stream behind its last item. False if it has ended."""
        if self._ended is not None:
            return False
        self._ended = reason
        self._parking.wake()
        return True

    @property
    def exhausted(self) -> bool:
        """True once the consumer has seen the end of everything."""
        return self._ended is not None and not self._items and not self._later and not self._batches


class ItemSender(Protocol):
    """What a sending half needs of its connection."""

    def has_room(self, outbound: Outbound[Any], request_id: int) -> bool:
        """Whether items may be sent now; if not, `outbound.resume` is called when that may have changed."""
        ...

    def send_items(self, request_id: int, count: int, payload: bytes, blobs: Sequence[Bytes]) -> int:
        """Queue a batch; return what it costs in credit. Raises EncodeError if the peer does not accept its size."""
        ...


class Outbound(Generic[T]):
    """The items that go out: the `Sink` of a driven generator or iterable.

    The window is the *peer's*, from its HELLO.
    """

    def __init__(self, sender: ItemSender, request_id: int, window: int, window_items: int, encode: Encode) -> None:
        self._sender = sender
        self._id = request_id
        self._credit, self._credit_items = window, window_items
        self._window, self._window_items = window, window_items
        self._encode = encode
        self._gathered: list[T] = []
        self._limit = 1
        self._began: float | None = None
        """When the producer got its room, unless it has slept since."""
        self._error: Exception | None = None
        self.last_error: Exception | None = None
        """The last item's fault; an item that cannot be sent is thrown in at the producer's yield."""
        self._stopped = False
        self._parking = _Parking()

    @property
    def waiting(self) -> bool:
        """True while the producer waits here for credit: it is at its `yield`."""
        return self._parking.task is not None

    def batch(self) -> tuple[Callable[[T], object], int]:
        """Gather so many."""
        self._began = trio.current_time()
        return self._gathered.append, max(1, min(self._limit, self._credit_items))

    def flush(self) -> None:
        """Send what is gathered as far as the credit goes. Never raises: an error waits for `room`."""
        self._began = None
        while (
            self._gathered
            and self._credit > 0
            and self._credit_items > 0
            and not self._stopped
            and self._error is None
            and self._sender.has_room(self, self._id)
        ):
            try:
                self._send_batch(self._gathered[: min(self._limit, self._credit_items)])
            except Exception as exc:
                # Raised where the producer can see it, at its next yield, and not in the middle of its step.
                self._error = self.last_error = exc

    def _send_batch(self, batch: list[T]) -> None:
        count = len(batch)
        try:
            payload, blobs = self._encode(batch)
        except EncodeError:
            if count == 1:
                del self._gathered[:1]
                raise
            self._limit = 1  # One by one, so that the good ones before the bad one arrive.
            return
        size = len(payload) + sum(map(len, blobs))
        if size > CHUNK_SIZE and count > 1:
            self._limit = max(1, count * BATCH_BYTES // size)
            return
        del self._gathered[:count]
        cost = self._sender.send_items(self._id, count, payload, blobs)
        self._credit -= cost
        self._credit_items -= count
        if size * 2 <= BATCH_BYTES:
            self._limit = min(BATCH_ITEMS, self._limit * 2)
        elif size > BATCH_BYTES:
            self._limit = max(1, self._limit // 2)

    async def room(self) -> None:
        """Wait until everything gathered is sent, and there is credit and room for more; a checkpoint."""
        parked = False
        if self._began is not None and trio.current_time() - self._began > RUN_SECONDS:
            self._limit = max(1, self._limit // 4)  # What is sent now doubles it.
        while True:
            self.flush()
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._stopped:
                raise Stopped
            if (
                not self._gathered
                and self._credit > 0
                and self._credit_items > 0
                and self._sender.has_room(self, self._id)
            ):
                break
            await self._parking.wait()
            parked = True
        if not parked:
            await checkpoint()

    async def finish(self) -> None:
        """Wait until the last item is sent: what `flush` had to leave for lack of credit, or of room.

        Returns as well once the consumer has left: nothing is owed to it then, and the producer has ended already.
        """
        self.flush()
        while self._gathered and self._error is None:
            await self._parking.wait()
            self.flush()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    # -- told by the connection's reader: synchronous --------------------------------------------------------------

    def grant(self, size: int, items: int) -> bool:
        """The peer's consumer took so much; False if that is more than it was sent, of which it gets no credit."""
        credit, credit_items = self._credit + size, self._credit_items + items
        self._credit, self._credit_items = min(credit, self._window), min(credit_items, self._window_items)
        self._parking.wake()
        return credit == self._credit and credit_items == self._credit_items

    def resume(self) -> None:
        """There may be room for more."""
        self._parking.wake()

    def stop(self) -> None:
        """The consumer has left: nothing more is sent, and `room` raises Stopped."""
        self._stopped = True
        self._gathered.clear()
        self._parking.wake()
