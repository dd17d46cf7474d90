"""A peer that is played by hand: the public sans-IO protocol over one end of a memory pipe, for what no server does."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgpack
import trio

from trio_rpc import Code
from trio_rpc.testing import memory_pipe
from trio_rpc.wire import Event, Frames, GoAwayReceived, Hello, Outcome, Protocol, RequestReceived, Role

E = TypeVar("E")


class ScriptedPeer:
    """The serving side of one connection; every step is the script's."""

    def __init__(self, stream: trio.abc.Stream, hello: Hello) -> None:
        self.stream = stream
        self.protocol = Protocol(Role.ACCEPTOR, hello)
        self._events: deque[Event] = deque()

    async def greet(self) -> None:
        """Take the caller's HELLO and answer it."""
        await self.event()
        await self.stream.send_all(self.protocol.greeting())

    async def event(self) -> Event:
        """The next event; EndOfChannel once the caller has closed, or says that it will."""
        while not self._events:
            data = await self.stream.receive_some()
            if not data:
                raise trio.EndOfChannel
            self._events.extend(self.protocol.receive_data(bytes(data)))
        if isinstance(self._events[0], GoAwayReceived):
            raise trio.EndOfChannel
        return self._events.popleft()

    async def expect(self, kind: type[E]) -> E:
        """The next event, which must be of this kind."""
        event = await self.event()
        assert isinstance(event, kind), event
        return event

    async def send(self, *frames: bytes | Frames) -> None:
        """Send control frames and small messages."""
        await self.stream.send_all(b"".join(frame if isinstance(frame, bytes) else frame[0] for frame in frames))

    async def answer(self, request: RequestReceived, value: Any) -> None:
        """Answer with a result."""
        await self.send(self.protocol.response(request.id, msgpack.packb(value)))

    async def refuse(self, request: RequestReceived, code: Code) -> None:
        """Say that the request was not run."""
        await self.send(self.protocol.error(request.id, code, Outcome.REFUSED, False, "by the script"))

    async def serve(self) -> None:
        """Answer every request with its method's name, to the connection's end."""
        while True:
            event = await self.event()
            if isinstance(event, RequestReceived):
                await self.answer(event, event.method)


Script = Callable[[ScriptedPeer], Awaitable[object]]


class ScriptedServer:
    """Plays one script for each connection in turn; the last one again for all further connections.

    A connection is closed when its script returns. `connect` is a target for `open_pool`.
    """

    def __init__(self, nursery: trio.Nursery, *scripts: Script, hello: Hello = Hello()) -> None:  # noqa: B008 - frozen
        self.dialled_at: list[float] = []
        self._nursery = nursery
        self._scripts = deque(scripts)
        self._hello = hello

    async def connect(self) -> trio.abc.Stream:
        """Open a connection."""
        await trio.lowlevel.checkpoint()  # Before there is anything that a cancellation could leave behind.
        self.dialled_at.append(trio.current_time())
        ours, theirs = memory_pipe()
        script = self._scripts.popleft() if len(self._scripts) > 1 else self._scripts[0]
        self._nursery.start_soon(self._play, script, ScriptedPeer(theirs, self._hello))
        return ours

    async def _play(self, script: Script, peer: ScriptedPeer) -> None:
        async with peer.stream:
            try:
                await script(peer)
            except (trio.EndOfChannel, trio.BrokenResourceError):
                pass  # The caller has gone; a script that minds looks for itself.


async def greet_and_serve(peer: ScriptedPeer) -> None:
    """The script of a good server."""
    await peer.greet()
    await peer.serve()


HANG = 100_000.0
"""Virtual seconds that no test takes: then something waits that nothing will ever wake."""


@asynccontextmanager
async def watchdog() -> AsyncIterator[None]:
    """Fail instead of hanging for ever on an autojump clock; without a deadline that the calls inside would see."""
    held: BaseException | None = None

    async def bark() -> None:
        await trio.sleep(HANG)
        raise AssertionError("nothing moves any more")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bark)
        try:
            yield
        except Exception as exc:
            held = exc  # raised outside the nursery, which would put it into a group
        nursery.cancel_scope.cancel()
    if held is not None:
        raise held
