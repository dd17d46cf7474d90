"""Named faults for any stream, on the test's own clock.

A fault wraps the two functions that move a stream's bytes, one per direction, so that faults compose: the first one
given is the nearest to the user of the stream, the last the nearest to the wire. Between faults, `b""` is the end of
the stream, in both directions.

All state of a connection lives in those functions. So one `Drop(after=10)` may serve any number of streams, and each
of them loses everything after its own tenth byte. Only what has a switch (`Freeze`, `Drop.now`) and the `Recorder`
are shared on purpose: one of them given to several streams acts on all.

A fault never loses bytes by being cancelled: what it had already received when its task was cancelled is handed out
by the next receive.
"""

from __future__ import annotations

import math
from typing import Literal

import attrs
import trio

from ._faulty import Data, Direction, Fault, Receive, Reset, Send

__all__ = ["Cut", "Delay", "Drop", "Freeze", "Passage", "Recorder", "Trickle"]

_DIRECTION = attrs.validators.in_(("sending", "receiving", "both"))


def _at_most(max_bytes: int | None, bound: int | None) -> int | None:
    if max_bytes is None or bound is None:
        return bound if max_bytes is None else max_bytes
    return min(max_bytes, bound)


class _Held:
    """What a fault has received and may not hand out yet: a cancellation must not lose it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._data: bytes | None = None
        self.since = 0.0

    async def fill(self, max_bytes: int | None) -> None:
        if self._data is None:
            self._data = await self._receive(max_bytes)
            self.since = trio.current_time()

    def take(self, max_bytes: int | None) -> bytes:
        data = self._data or b""
        size = len(data) if max_bytes is None else max_bytes
        self._data = data[size:] or None
        return data[:size]


@attrs.frozen
class Delay(Fault):
    """Every send and every received chunk takes `seconds` longer.

    A slow party rather than a long line: while one chunk is delayed, the next one waits behind it.
    """

    seconds: float = attrs.field(validator=attrs.validators.ge(0))
    direction: Direction = attrs.field(default="both", kw_only=True, validator=_DIRECTION)

    def sending(self, send: Send, reset: Reset) -> Send:
        async def delayed(data: Data) -> None:
            await trio.sleep(self.seconds)
            await send(data)

        return delayed

    def receiving(self, receive: Receive, reset: Reset) -> Receive:
        held = _Held(receive)

        async def delayed(max_bytes: int | None) -> bytes:
            await held.fill(max_bytes)
            await trio.sleep_until(held.since + self.seconds)
            return held.take(max_bytes)

        return delayed


@attrs.define(eq=False)
class Drop(Fault):
    """A black hole: after `after` bytes everything is swallowed, silently and for good, the end included.

    Sending seems to succeed; receiving waits for ever, while what arrives is read and thrown away. With `after=None`
    nothing is lost until `now()`.
    """

    after: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(0)))
    direction: Direction = attrs.field(default="both", kw_only=True, validator=_DIRECTION)
    _dropping: bool = attrs.field(default=False, init=False)

    def now(self) -> None:
        """Swallow everything from now on, on every stream that has this fault."""
        self._dropping = True

    def _left(self, passed: int) -> int | None:
        """How many more bytes may pass; None for any number."""
        if self._dropping or self.after is None:
            return 0 if self._dropping else None
        return self.after - passed

    def sending(self, send: Send, reset: Reset) -> Send:
        passed = 0

        async def dropping(data: Data) -> None:
            nonlocal passed
            left = self._left(passed)
            if left == 0:
                return
            passing = data[:left]
            passed += len(passing)
            await send(passing)

        return dropping

    def receiving(self, receive: Receive, reset: Reset) -> Receive:
        passed = 0

        async def dropping(max_bytes: int | None) -> bytes:
            nonlocal passed
            left = self._left(passed)
            if left != 0:
                data = await receive(_at_most(max_bytes, left))
                # `now()` may have been called while we waited: what came after it is lost as well.
                if self._left(passed) != 0:
                    passed += len(data)
                    return data
            return await _swallow(receive)

        return dropping


async def _swallow(receive: Receive) -> bytes:
    try:
        while await receive(None):
            pass
    except trio.BrokenResourceError:
        pass  # a reset does not come out of a black hole either
    await trio.sleep_forever()


@attrs.frozen
class Cut(Fault):
    """The connection is reset as soon as `after` bytes have passed in one of the directions.

    Exactly `after` bytes arrive. A `send_all` that had more raises BrokenResourceError; one that ended exactly there
    returns, and what is tried next is broken.
    """

    after: int = attrs.field(validator=attrs.validators.ge(0))
    direction: Direction = attrs.field(default="both", kw_only=True, validator=_DIRECTION)

    def sending(self, send: Send, reset: Reset) -> Send:
        passed = 0

        async def cutting(data: Data) -> None:
            nonlocal passed
            passing = data[: self.after - passed]
            passed += len(passing)
            if len(passing) or not len(data):
                await send(passing)
            if passed >= self.after:
                await reset()
            if len(passing) < len(data):
                raise trio.BrokenResourceError(f"the connection was cut after {self.after} bytes")

        return cutting

    def receiving(self, receive: Receive, reset: Reset) -> Receive:
        passed = 0

        async def cutting(max_bytes: int | None) -> bytes:
            nonlocal passed
            if passed >= self.after:
                await reset()
                raise trio.BrokenResourceError(f"the connection was cut after {self.after} bytes")
            data = await receive(_at_most(max_bytes, self.after - passed))
            passed += len(data)
            if passed >= self.after:
                await reset()
            return data

        return cutting


@attrs.frozen
class Trickle(Fault):
    """Bytes dribble: at most `size` of them every `interval` seconds; the first ones pass at once."""

    size: int = attrs.field(validator=attrs.validators.ge(1))
    interval: float = attrs.field(validator=attrs.validators.ge(0))
    direction: Direction = attrs.field(default="both", kw_only=True, validator=_DIRECTION)

    def sending(self, send: Send, reset: Reset) -> Send:
        due = -math.inf

        async def trickling(data: Data) -> None:
            nonlocal due
            for start in range(0, max(len(data), 1), self.size):
                await trio.sleep_until(due)
                await send(data[start : start + self.size])
                due = trio.current_time() + self.interval

        return trickling

    def receiving(self, receive: Receive, reset: Reset) -> Receive:
        due = -math.inf

        async def trickling(max_bytes: int | None) -> bytes:
            nonlocal due
            await trio.sleep_until(due)
            data = await receive(_at_most(max_bytes, self.size))
            due = trio.current_time() + self.interval
            return data

        return trickling


@attrs.define(eq=False)
class Freeze(Fault):
    """A stall with a switch, as a stopped process makes it: nothing passes between `freeze()` and `thaw()`.

    Nothing is lost: what was sent or had arrived passes after the thaw. A send that was already waiting in the
    stream inside when it was frozen is not called back.
    """

    frozen: bool = attrs.field(default=False, kw_only=True)
    direction: Direction = attrs.field(default="both", kw_only=True, validator=_DIRECTION)
    _thawed: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    def freeze(self) -> None:
        """Let nothing pass until `thaw()`."""
        self.frozen = True

    def thaw(self) -> None:
        """Let everything pass again."""
        self.frozen = False
        self._thawed.set()
        self._thawed = trio.Event()

    async def _pass(self) -> None:
        while self.frozen:
            await self._thawed.wait()

    def sending(self, send: Send, reset: Reset) -> Send:
        async def freezing(data: Data) -> None:
            await self._pass()
            await send(data)

        return freezing

    def receiving(self, receive: Receive, reset: Reset) -> Receive:
        held = _Held(receive)

        async def freezing(max_bytes: int | None) -> bytes:
            await self._pass()
            await held.fill(max_bytes)
            await self._pass()  # it may have been frozen while we waited for this chunk
            return held.take(max_bytes)

        return freezing


@attrs.frozen
class Passage:
    """One chunk that passed a `Recorder`."""

    at: float
    """When, on Trio's clock."""
    direction: Literal["sending", "receiving"]
    data: bytes


@attrs.define(eq=False, repr=False)
class Recorder(Fault):
    """Not a fault but a witness: keeps every chunk that passes its place among the faults.

    A sent chunk is recorded when it is handed on, before the stream inside has taken it; a received one when it has
    arrived. The end of the stream is no chunk.
    """

    direction: Direction = attrs.field(default="both", kw_only=True, validator=_DIRECTION)
    passages: list[Passage] = attrs.field(factory=list, init=False)

    def __repr__(self) -> str:
        return f"Recorder({self.bytes_sent} bytes sent, {self.bytes_received} received)"

    @property
    def sent(self) -> list[bytes]:
        """The chunks that were sent, each as it was given."""
        return [passage.data for passage in self.passages if passage.direction == "sending"]

    @property
    def received(self) -> list[bytes]:
        """The chunks that were received."""
        return [passage.data for passage in self.passages if passage.direction == "receiving"]

    @property
    def bytes_sent(self) -> int:
        """How many bytes were sent."""
        return sum(map(len, self.sent))

    @property
    def bytes_received(self) -> int:
        """How many bytes were received."""
        return sum(map(len, self.received))

    def clear(self) -> None:
        """Forget what has passed so far."""
        self.passages.clear()

    def _record(self, direction: Literal["sending", "receiving"], data: Data) -> None:
        if len(data):
            self.passages.append(Passage(trio.current_time(), direction, bytes(data)))

    def sending(self, send: Send, reset: Reset) -> Send:
        async def recording(data: Data) -> None:
            self._record("sending", data)
            await send(data)

        return recording

    def receiving(self, receive: Receive, reset: Reset) -> Receive:
        async def recording(max_bytes: int | None) -> bytes:
            data = await receive(max_bytes)
            self._record("receiving", data)
            return data

        return recording
