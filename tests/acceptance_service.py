"""What is called in the acceptance worlds: gRPC's interop test service as a contract, and a service that keeps a diary."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import contextmanager

import trio
from attrs import frozen

from trio_rpc import Code, RemoteError, current_call, method

MAX_SIZE = 1024 * 1024
"""Larger bodies are not made, whatever a fuzzed request asks for."""


def pattern(size: int) -> bytes:
    """`size` bytes; those of two sizes differ from the first byte on."""
    if size > MAX_SIZE:
        raise RemoteError(f"no body of {size} bytes is made here", code=Code.OUT_OF_RANGE)
    start = size % 251
    return (bytes(range(256)) * (size // 256 + 2))[start : start + size]


@frozen
class Ask:
    """One request of a conversation: a body, and how large the answer is to be."""

    size: int
    body: bytes = b""


class Interop:
    @method
    async def empty(self) -> None:
        raise NotImplementedError

    @method
    async def exchange(self, body: bytes, size: int) -> bytes:
        raise NotImplementedError

    @method
    async def total(self, bodies: AsyncIterable[bytes]) -> int:
        raise NotImplementedError

    @method
    def produce(self, sizes: list[int], padding: int = 0) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError

    @method
    def converse(self, asks: AsyncIterable[Ask]) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError

    @method
    def greet(self, names: AsyncIterable[str]) -> AsyncGenerator[str, None]:
        raise NotImplementedError

    @method
    async def fail(self, text: str) -> None:
        raise NotImplementedError

    @method
    def fail_talking(self, texts: AsyncIterable[str]) -> AsyncGenerator[str, None]:
        raise NotImplementedError

    @method
    async def hold(self, stubborn: bool = False) -> int:
        raise NotImplementedError

    @method
    async def relay(self, seconds: float) -> float:
        raise NotImplementedError

    @method
    async def time_left(self) -> float:
        raise NotImplementedError

    @method
    async def undone(self) -> None:
        raise NotImplementedError


class Words:
    """What is called where the server is spoken by hand: texts alone, which are the same on every codec."""

    @method
    async def word(self) -> str:
        raise NotImplementedError

    @method
    def words(self) -> AsyncGenerator[str, None]:
        raise NotImplementedError


class Service(Interop):
    """Answers, and writes down what happened to its handlers. `next` is what `relay` calls."""

    next: Interop

    def __init__(self) -> None:
        self.begun = self.running = self.peak = 0
        self.ids: list[int] = []
        self.endings: list[str] = []
        """How handlers that were observed ended: "returned", or the name of what was raised in them."""
        self.made = 0
        """Items made by `produce`."""
        self.taken = 0
        """Items taken by `total`."""
        self.gate = trio.Event()
        """`total` takes nothing before it is set; open unless a scenario shuts it."""
        self.gate.set()
        self.release = trio.Event()
        """`hold` returns once it is set."""

    @contextmanager
    def _observed(self) -> Iterator[int]:
        request_id = current_call().id
        self.ids.append(request_id)
        self.begun += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            yield request_id
        except BaseException as exc:
            self.endings.append(type(exc).__name__)
            raise
        else:
            self.endings.append("returned")
        finally:
            self.running -= 1

    @method
    async def empty(self) -> None:
        return

    @method
    async def exchange(self, body: bytes, size: int) -> bytes:
        with self._observed():
            call = current_call()
            call.reply_metadata.update(call.metadata)
            if body != pattern(len(body)):
                raise RemoteError(f"a body of {len(body)} bytes arrived changed", code=Code.DATA_LOSS)
            return pattern(size)

    @method
    async def total(self, bodies: AsyncIterable[bytes]) -> int:
        with self._observed():
            await self.gate.wait()
            size = 0
            async for body in bodies:
                self.taken += 1
                size += len(body)
            return size

    @method
    async def produce(self, sizes: list[int], padding: int = 0) -> AsyncGenerator[bytes, None]:
        with self._observed():
            call = current_call()
            for size in sizes:
                self.made += 1
                if padding:
                    call.reply_metadata["padding"] = bytes(padding)
                yield pattern(size)

    @method
    async def converse(self, asks: AsyncIterable[Ask]) -> AsyncGenerator[bytes, None]:
        """The text of the caller's metadata goes back with the first item, its bytes with the end."""
        with self._observed():
            call = current_call()
            call.reply_metadata.update({key: text for key, text in call.metadata.items() if isinstance(text, str)})
            async for ask in asks:
                yield pattern(ask.size)
            call.reply_metadata.update({key: raw for key, raw in call.metadata.items() if isinstance(raw, bytes)})

    @method
    async def greet(self, names: AsyncIterable[str]) -> AsyncGenerator[str, None]:
        yield "who is there?"
        async for name in names:
            yield f"hello, {name}"

    @method
    async def fail(self, text: str) -> None:
        raise RemoteError(text, code=Code.UNKNOWN)

    @method
    async def fail_talking(self, texts: AsyncIterable[str]) -> AsyncGenerator[str, None]:
        async for text in texts:
            yield text
            raise RemoteError(text, code=Code.UNKNOWN)

    @method
    async def hold(self, stubborn: bool = False) -> int:
        with self._observed() as request_id, trio.CancelScope(shield=stubborn):
            await self.release.wait()
        return request_id

    @method
    async def relay(self, seconds: float) -> float:
        await trio.sleep(seconds)
        return await self.next.time_left()

    @method
    async def time_left(self) -> float:
        return trio.current_effective_deadline() - trio.current_time()
