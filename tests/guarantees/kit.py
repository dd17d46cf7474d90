"""What the guarantees' tests share: a service whose handlers do one thing each, and the virtual times of what they did."""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from typing import Any, TypeVar

import msgpack
import trio

from trio_rpc import current_call, method
from trio_rpc.wire import Event, Frames, Hello, Protocol, Role, method_block

E = TypeVar("E")


class Broken(Exception):
    """What the service's handlers declare."""


class Lab:
    """One behaviour for each method. `log` holds what ended, and when."""

    def __init__(self) -> None:
        self.log: list[tuple[str, float]] = []
        self.running = 0
        self.produced = 0
        self.hook: Callable[[], object] = lambda: None

    def note(self, what: str) -> None:
        self.log.append((what, round(trio.current_time(), 6)))

    @property
    def words(self) -> list[str]:
        return [what for what, _ in self.log]

    @method
    async def echo(self, value: Any) -> Any:
        return value

    @method
    async def run_hook(self) -> None:
        """Do what the test has put there, without suspending."""
        self.hook()

    @method
    async def call_id(self) -> int:
        return current_call().id

    @method
    async def sleep(self, seconds: float, cleanup: float = 0.0) -> str:
        """Sleep; if cancelled, take `cleanup` seconds to end."""
        self.running += 1
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)
            raise
        finally:
            self.running -= 1
            self.note("ended")
        return "slept"

    @method(idempotent=True)
    async def sleep_again(self, seconds: float) -> str:
        return await self.sleep(seconds)

    @method
    async def stubborn(self, seconds: float) -> str:
        """Notice no cancellation, and return."""
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        self.note("ended")
        return "done"

    @method(raises=[Broken])
    async def breaks(self, seconds: float) -> None:
        """Sleep, and raise Broken in answer to a cancellation."""
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            raise Broken("in its clean-up") from None

    @method
    async def time_left(self) -> float:
        return trio.current_effective_deadline() - trio.current_time()

    @method
    async def count(self, upto: int = 1_000_000, cleanup: float = 0.0, pad: int = 0) -> AsyncGenerator[str, None]:
        """Produce numbers, padded to `pad` characters."""
        self.produced = 0
        try:
            for number in range(upto):
                self.produced += 1
                yield str(number).rjust(pad)
        except BaseException as exc:
            self.note(type(exc).__name__)
            raise
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)
            self.note("cleaned")

    @method
    async def total(self, numbers: AsyncIterable[int]) -> int:
        return sum([number async for number in numbers])

    @method
    async def first(self, numbers: AsyncIterable[int]) -> int:
        """Take one item, and no more."""
        async for number in numbers:
            return number
        return -1

    @method
    async def stubborn_total(self, numbers: AsyncIterable[int], seconds: float) -> str:
        """Take no item and notice no cancellation."""
        return await self.stubborn(seconds)

    @method
    async def doubled(self, numbers: AsyncIterable[int]) -> AsyncGenerator[int, None]:
        async for number in numbers:
            yield 2 * number


async def numbers(upto: int) -> AsyncGenerator[int, None]:
    """An async iterable of the caller's."""
    for number in range(upto):
        yield number


async def never() -> AsyncGenerator[int, None]:
    """An async iterable that yields nothing and does not end."""
    while True:
        await trio.sleep(math.inf)
        yield 0


class RawClient:
    """The dialling side of one connection, played by hand: the public sans-IO protocol over a stream."""

    def __init__(self, stream: trio.abc.Stream, hello: Hello | None = None) -> None:
        self.stream = stream
        self.protocol = Protocol(Role.DIALLER, hello or Hello())
        self._events: deque[Event] = deque()

    async def greet(self) -> None:
        """Exchange the HELLOs."""
        await self.stream.send_all(self.protocol.greeting())
        await self.event()

    def request(self, name: str, *args: Any, timeout: float | None = None, streaming: bool = False) -> bytes:
        """The frame of a small request."""
        payload = msgpack.packb(list(args))
        _, frames = self.protocol.request(method_block(name), payload, timeout=timeout, streaming=streaming)
        return frames[0]

    async def send(self, *frames: bytes | Frames) -> None:
        """Send control frames and small messages in one piece."""
        await self.stream.send_all(b"".join(frame if isinstance(frame, bytes) else frame[0] for frame in frames))

    async def event(self) -> Event:
        """The next event; EndOfChannel once the server has closed."""
        while not self._events:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise trio.EndOfChannel
            self._events.extend(self.protocol.receive_data(bytes(data)))
        return self._events.popleft()

    async def expect(self, kind: type[E]) -> E:
        """The next event, which must be of this kind."""
        event = await self.event()
        assert isinstance(event, kind), event
        return event

    async def closed(self) -> bool:
        """Read on until the server has closed."""
        with trio.move_on_after(60):
            while True:
                try:
                    await self.event()
                except trio.EndOfChannel:
                    return True
        return False


@trio.lowlevel.enable_ki_protection
async def press_control_c() -> None:
    """After a second, in a task that it does not reach itself."""
    await trio.sleep(1)
    signal.raise_signal(signal.SIGINT)
