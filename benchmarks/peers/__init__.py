"""What a peer is: one library, doing every workload as its users would.

A peer is run by two processes or more: `python -m benchmarks.peers NAME server SETTING`, which calls `serve()`, and
`... client SETTING`, which enters one of the client's blocks for each round and drives what the block yields. The
block is named by `Setting.kind`; the rest of the setting says how: with how many callers, with TLS or not, and so on.
Both processes have been told the same setting, so a server knows what its handler has to do.

A module of a peer ends with `peer = ThePeer`: it is called with the Setting and the variant of its entry in the
registry. It stands in `benchmarks.registry` under its name, with its environment and the workloads that it can do.

Rules that keep it fair:
- The payload is `payload(i)`, built anew for each call, and the echo is checked: at least its id, or its length.
- The server returns what came in, after the library has decoded it, and encodes it anew.
- Each call has a deadline of DEADLINE seconds, where the library has deadlines: as its users set them cheaply.
- It is the library's fastest ordinary way: generated stubs, values rather than proxies, its own fast codec. Limits on
  the size of messages are raised where they are too small; nothing else is tuned or switched off.
- Many callers share one connection (`setting.connections` of them) where the library has many calls on one; else each
  has its own.

Standard library only: every environment can import this.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..workloads import Setting

__all__ = [
    "DEADLINE",
    "HOST",
    "Announce",
    "AsyncBlock",
    "AsyncCall",
    "Call",
    "Peer",
    "Runtime",
    "ThreadPeer",
    "burn",
    "client_tls",
    "payload",
    "server_tls",
]

HOST = "127.0.0.1"
DEADLINE = 5.0
NAME = "benchmark item"
VALUES = [1, 20, 300, 4000, 50_000, 600_000, 7_000_000, 80_000_000]

Runtime: TypeAlias = Literal["trio", "asyncio", "uvloop"]
Announce: TypeAlias = Callable[[int], None]
AsyncCall: TypeAlias = Callable[[Any], Awaitable[None]]
AsyncBlock: TypeAlias = AbstractAsyncContextManager[Any]
Call: TypeAlias = Callable[[Any], None]


class Peer:
    """A library with async functions. A workload that the registry does not list need not be implemented.

    The names of the blocks are the kinds of `Setting`. What a block opens is closed when it is left.
    """

    runtime: Runtime = "trio"

    def __init__(self, setting: Setting, variant: str = "") -> None:
        self.setting = setting
        self.variant = variant

    @property
    def port(self) -> int:
        """The port of the (first) server; in the client."""
        return self.setting.ports[0]

    async def serve(self, announce: Announce) -> None:
        """Listen on a free port of HOST, call `announce(port)` as soon as one can connect, and serve until killed."""
        raise NotImplementedError

    def ambient(self, seconds: float) -> AbstractContextManager[object]:
        """Is entered by every caller around its loop, which takes about `seconds`: for a deadline that is ambient."""
        return nullcontext()

    def unary(self) -> AbstractAsyncContextManager[list[AsyncCall]]:
        """Yields a list of `setting.callers` functions (often the same one): each is called by one caller.

        `await call(i)` sends `payload(i)`, or that as an instance of a class (`setting.typed`), and checks the echo.
        """
        raise NotImplementedError

    def large(self) -> AbstractAsyncContextManager[AsyncCall]:
        """Yields `call(data)`: send `setting.size` bytes as one message and check the length of the echo."""
        raise NotImplementedError

    def server_stream(self) -> AbstractAsyncContextManager[AsyncCall]:
        """Yields `run(n)`: receive a stream of `payload(0)` to `payload(n - 1)`, checking each id and the count."""
        raise NotImplementedError

    def client_stream(self) -> AbstractAsyncContextManager[AsyncCall]:
        """Yields `run(n)`: send a stream of n payloads; the answer is their count, which is checked."""
        raise NotImplementedError

    def bidi(self) -> AbstractAsyncContextManager[AsyncCall]:
        """Yields `run(n)`: send n payloads while they come back one by one; ids and count are checked."""
        raise NotImplementedError

    def short(self) -> AbstractAsyncContextManager[AsyncCall]:
        """Yields `call(i)`: connect, make one call with `payload(i)`, close."""
        raise NotImplementedError

    def idle(self) -> AbstractAsyncContextManager[Callable[[], Awaitable[None]]]:
        """Yields `open_one()`: open one more connection, make one call on it, and keep it until the block ends."""
        raise NotImplementedError

    def shared_link(self) -> AbstractAsyncContextManager[tuple[list[AsyncCall], AsyncCall]]:
        """Yields the calls as `unary()` does, and `load(seconds)`: use the same connection otherwise for so long."""
        raise NotImplementedError


class ThreadPeer:
    """A library with blocking functions: the same blocks as in Peer, as plain context managers and plain functions.

    Every caller is a thread. What `unary()` yields is made and closed in the main thread, and each function of it is
    called in one thread only. `threading` is used by its module's name, so that gevent can replace it.
    """

    def __init__(self, setting: Setting, variant: str = "") -> None:
        self.setting = setting
        self.variant = variant

    @property
    def port(self) -> int:
        """The port of the (first) server; in the client."""
        return self.setting.ports[0]

    def serve(self, announce: Announce) -> None:
        """Listen on a free port of HOST, call `announce(port)` as soon as one can connect, and serve until killed."""
        raise NotImplementedError

    def unary(self) -> AbstractContextManager[list[Call]]:
        """See Peer; each function is called in a thread of its own."""
        raise NotImplementedError

    def large(self) -> AbstractContextManager[Call]:
        """See Peer."""
        raise NotImplementedError

    def server_stream(self) -> AbstractContextManager[Call]:
        """See Peer."""
        raise NotImplementedError

    def client_stream(self) -> AbstractContextManager[Call]:
        """See Peer."""
        raise NotImplementedError

    def bidi(self) -> AbstractContextManager[Call]:
        """See Peer."""
        raise NotImplementedError

    def short(self) -> AbstractContextManager[Call]:
        """See Peer."""
        raise NotImplementedError

    def idle(self) -> AbstractContextManager[Callable[[], None]]:
        """See Peer."""
        raise NotImplementedError


def payload(i: int) -> dict[str, Any]:
    """The i-th payload: about 60 bytes in MessagePack."""
    return {"id": i, "name": NAME, "values": VALUES}


def burn(seconds: float) -> None:
    """Use this thread's CPU for so long; the work of a handler."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def server_tls(setting: Setting) -> ssl.SSLContext | None:
    """The server's TLS context, if the setting wants TLS."""
    if not setting.certificate:
        return None
    folder = Path(setting.certificate)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    return context


def client_tls(setting: Setting) -> ssl.SSLContext | None:
    """The client's TLS context, if the setting wants TLS; it verifies the server."""
    if not setting.certificate:
        return None
    return ssl.create_default_context(cafile=str(Path(setting.certificate) / "authority.pem"))
