"""A stream over a non-blocking socket of our own.

Trio's SocketStream wraps each call in a lock, a retry loop and a closed check; on a connection with one reader and one
writer these cost about a fifth of a small call. This stream does the same work with `wait_readable`/`recv` and
`sendmsg`, and nothing else. It keeps Trio's contract: errors are BrokenResourceError and ClosedResourceError.

What the kernel holds in its buffers is ahead of every frame that is still to be sent, however urgent. Deep buffers make
a message of 1 MiB quick (1.4 times the calls), and they delay all the rest while a longer one is under way, by 3 to 8 ms
on loopback. So they are left deep until that shows, and then made shallow for good: the sender's when it is full for
the first time, the receiver's when it stays full for FLOOD_SIZE bytes. The receiver's is its window, which a network
with a delay needs; so that is done on loopback only.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Callable, Sequence

import trio
from trio.lowlevel import notify_closing, wait_readable, wait_writable

from .wire import Bytes

if sys.platform == "linux":
    import fcntl
    import termios

__all__ = ["SocketStream", "own"]

RECEIVE_SIZE = 64 * 1024
"""Measured: 16 KiB and 256 KiB are both slower for small calls."""
EAGER = 4
"""Buffers that are received one behind the other, as long as they come full, before other tasks have their turn."""
FLOOD_SIZE = 2 * 1024 * 1024
SHALLOW_SEND = 16 * 1024
"""Unsent bytes in the kernel; Trio's own choice for all of its sockets."""
SHALLOW_RECEIVE = 128 * 1024
AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: no time to linger."""
BYTES_ACKED = 120
"""Where tcpi_bytes_acked, 8 bytes, is in Linux's struct tcp_info."""
MAX_PARTS = 64
"""Buffers for one sendmsg, far below IOV_MAX (1024)."""


class SocketStream(trio.abc.HalfCloseableStream):
    """A connected socket as a Trio stream that also sends several buffers at once."""

    __slots__ = (
        "_deep",
        "_eager",
        "_full",
        "on_progress",
        "socket",
    )

    def __init__(self, sock: socket.socket) -> None:
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
        if is_tcp:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.socket = sock
        self._eager = self._full = 0
        """How many buffers more to receive at once; bytes that came in full ones since one that was not."""
        self._deep = is_tcp and hasattr(socket, "TCP_NOTSENT_LOWAT")
        self.on_progress: Callable[[], object] = lambda: None
        """Told whenever the kernel has taken a part of what is being sent, and more is left."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes; b"" at the end. No checkpoint while more has been seen to wait, up to EAGER in a row."""
        size = max_bytes or RECEIVE_SIZE
        while True:
            self._check_open()
            if not self._eager:
                await wait_readable(self.socket)
            try:
                data = self.socket.recv(size)
            except BlockingIOError:
                self._eager = 0
                continue
            except OSError as exc:
                raise self._translate(exc) from exc
            if len(data) < size:
                self._eager = self._full = 0
            else:
                self._eager = (self._eager or EAGER) - 1
                self._full += size
                if self._full == FLOOD_SIZE:
                    self._narrow()
            return data

    def receive_at_once(self, max_bytes: int = RECEIVE_SIZE) -> bytes | None:
        """What has arrived already: None if nothing has, b"" at the end."""
        self._check_open()
        try:
            return self.socket.recv(max_bytes)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self._translate(exc) from exc

    async def send_all(self, data: Bytes) -> None:
        """Send one buffer."""
        await self.send_buffers([data])

    async def send_buffers(self, buffers: Sequence[Bytes]) -> None:
        """Send several buffers in order, uncopied."""
        self._check_open()
        waiting = [memoryview(buffer) for buffer in buffers if len(buffer)]
        waiting.reverse()
        while waiting:
            try:
                sent = (
                    self.socket.sendmsg(waiting[: -MAX_PARTS - 1 : -1])
                    if len(waiting) > 1
                    else self.socket.send(waiting[0])
                )
            except BlockingIOError:
                if self._deep:
                    self._deep = False
                    self._set(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SHALLOW_SEND)
                await wait_writable(self.socket)
                continue
            except OSError as exc:
                raise self._translate(exc) from exc
            while waiting and sent >= len(waiting[-1]):
                sent -= len(waiting.pop())
            if sent:
                waiting[-1] = waiting[-1][sent:]
            if waiting:
                self.on_progress()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes more bytes."""
        self._check_open()
        await wait_writable(self.socket)

    async def send_eof(self) -> None:
        """Shut the sending side."""
        self._check_open()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close at once; the kernel delivers what it has taken."""
        self.close()
        await trio.lowlevel.checkpoint()

    @property
    def under_way(self) -> int:
        """Bytes that the kernel has taken and the peer's machine has not acknowledged; 0 where that is not to be had."""
        if sys.platform != "linux" or self.socket.family not in (socket.AF_INET, socket.AF_INET6):
            return 0
        try:
            return int.from_bytes(fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except (OSError, ValueError):  # It is closed.
            return 0

    @property
    def acknowledged(self) -> int:
        """Bytes that the peer's machine has acknowledged, where `under_way` is to be had."""
        if sys.platform != "linux":
            return 0
        try:
            info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_ACKED + 8)
        except OSError:
            return 0
        return int.from_bytes(info[BYTES_ACKED:], sys.byteorder)

    def abandon(self) -> None:
        """Have `close` reset the connection: nothing that is still in the kernel is sent, and the peer is told at once."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)

    def close(self) -> None:
        """Close without a checkpoint."""
        if self.socket.fileno() != -1:
            notify_closing(self.socket)
            self.socket.close()

    def _narrow(self) -> None:
        """A flood comes in: keep little of it in the kernel, if it comes from this very machine."""
        if self.socket.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                if self.socket.getpeername()[0] == self.socket.getsockname()[0]:
                    self._set(socket.SOL_SOCKET, socket.SO_RCVBUF, SHALLOW_RECEIVE)

    def _set(self, level: int, option: int, value: int) -> None:
        with contextlib.suppress(OSError):
            self.socket.setsockopt(level, option, value)

    def _check_open(self) -> None:
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError("this socket was closed on our side")

    def _translate(self, exc: OSError) -> Exception:
        if exc.errno in (errno.EBADF, errno.ENOTSOCK):
            return trio.ClosedResourceError("this socket was closed on our side")
        return trio.BrokenResourceError(f"socket connection broken: {exc}")


def own(sock: trio.socket.SocketType) -> socket.socket:
    """Take a socket out of Trio's wrapper, to read and write it ourselves."""
    family, kind, proto = sock.family, sock.type, sock.proto
    return socket.socket(family, kind, proto, fileno=sock.detach())
