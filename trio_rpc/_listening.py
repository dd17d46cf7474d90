"""Listening: sockets that can be opened anew at the same address, and what the kernel tells of their queues.

Who has connected and was not accepted yet waits in the kernel, in a queue of bounded length for each socket. Whether
that is long enough shows in two numbers: how many wait, and how many found it full.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterable, Sequence

import attrs
import trio
from trio.lowlevel import notify_closing, wait_readable

from ._address import Address
from ._sockets import SocketStream, own

__all__ = ["AcceptQueue", "SocketListener", "listen"]

MOST = 0xFFFF
"""The longest queue that may be asked for; systems clip it silently (Linux: to somaxconn), or reject what is larger."""
READ_PAUSE = 0.1
TCP_LISTEN = 10
_QUEUE = struct.Struct("=B23xII")
"""Of Linux's tcp_info: the state, and for a listening socket how many wait (tcpi_unacked), how many may (tcpi_sacked)."""


class SocketListener(trio.abc.Listener[SocketStream]):
    """A listening socket of our own, so that accepted connections are read and written directly."""

    def __init__(self, sock: socket.socket, address: Address, backlog: int) -> None:
        sock.setblocking(False)
        self.socket: socket.socket = sock
        self.address: Address = address
        self._backlog = backlog
        self._name = sock.getsockname()
        self._inode = os.fstat(sock.fileno()).st_ino

    async def accept(self) -> SocketStream:
        """Wait for the next connection. Raises OSError as the system call does, ClosedResourceError once closed.

        BlockingIOError too: one that is gone already is possible, and a run of these is a UNIX socket that was shut down.
        """
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError("this listener was closed")
        await wait_readable(self.socket)  # At once if more are waiting; a try before would mostly be in vain.
        sock, _ = self.socket.accept()
        return SocketStream(sock)

    def reopen(self) -> None:
        """Listen anew at the same address, after accepting has failed for whatever reason. Raises OSError if that fails.

        A socket that only does not listen any more is told to, as that needs no privilege that a bind may need. Else
        another one takes its place, in the same step. Who was waiting to be accepted there is lost, as with any socket
        that closes.
        """
        if self._is_whole() and not self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self.socket.listen(self._backlog)
            if self.socket.getsockname() == self._name:  # Linux gives another port to one that was bound to port 0.
                return
        successor = socket.socket(self.socket.family, socket.SOCK_STREAM)
        try:
            self._let_go()
            _bind(successor, self._name, self._path)
            successor.listen(self._backlog)
            successor.setblocking(False)
        except OSError as exc:
            successor.close()
            raise OSError(exc.errno, f"cannot listen on {self.address} again: {exc.strerror or exc}") from exc
        self.socket = successor
        self._inode = os.fstat(successor.fileno()).st_ino

    def queue(self) -> tuple[int, int] | None:
        """How many wait to be accepted, and how many may, as Linux tells of a TCP socket; None where it is not known."""
        if sys.platform != "linux" or self.socket.family == socket.AF_UNIX or self.socket.fileno() == -1:
            return None
        try:
            told = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUE.size)
        except OSError:
            return None
        if len(told) < _QUEUE.size:
            return None
        state, waiting, most = _QUEUE.unpack(told)
        return (waiting, most) if state == TCP_LISTEN else None

    async def aclose(self) -> None:
        """Stop listening; a UNIX socket's file is removed."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close without a checkpoint."""
        if self.socket.fileno() != -1:
            if self._path is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)  # First: once closed, a successor may put its own file there.
            self._let_go()

    @property
    def _path(self) -> str | None:
        """The file of a UNIX socket that has one."""
        is_file = self.address.scheme == "unix" and not self.address.path.startswith("@")
        return self.address.path if is_file else None

    def _is_whole(self) -> bool:
        """Whether the descriptor still is the socket's. Who closes others' descriptors by mistake may hit ours."""
        try:
            return os.fstat(self.socket.fileno()).st_ino == self._inode
        except OSError:
            return False

    def _let_go(self) -> None:
        if self._is_whole():
            notify_closing(self.socket)
            self.socket.close()
        else:
            self.socket.detach()  # By now the number may be another file's.


async def listen(address: Address, backlog: int) -> Sequence[SocketListener]:
    """Open the listening sockets of one address. Raises OSError that names the address."""
    backlog = min(backlog, MOST)
    try:
        if address.scheme == "unix":
            return [_listen_unix(address, backlog)]
        listeners = await trio.open_tcp_listeners(address.port, host=address.host or None, backlog=backlog)
    except OSError as exc:
        text = f"cannot listen on {address}: {exc.strerror or exc}"
        raise (OSError(text) if exc.errno is None else OSError(exc.errno, text)) from exc
    return [_own_listener(address, listener, backlog) for listener in listeners]


def _own_listener(address: Address, listener: trio.SocketListener, backlog: int) -> SocketListener:
    sock = own(listener.socket)
    host, port = sock.getsockname()[:2]
    if address.scheme == "tls" and address.host:
        host = address.host  # A certificate is checked against the name.
    return SocketListener(sock, attrs.evolve(address, host=host, port=port), backlog)


def _listen_unix(address: Address, backlog: int) -> SocketListener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind(sock, address.unix_path, None if address.path.startswith("@") else address.path)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return SocketListener(sock, address, backlog)


def _bind(sock: socket.socket, name: object, path: str | None) -> None:
    """Give a socket its address: as Trio does it for TCP, and for a UNIX socket with its file at `path`."""
    if sock.family == socket.AF_UNIX:
        if path is not None:
            _remove_stale(path)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # Connections that have ended do not keep it busy.
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(name)  # type: ignore[arg-type]  # Whatever getsockname said.
    if path is not None:
        os.chmod(path, 0o600)  # Only this user: on one machine that is the authentication.


def _remove_stale(path: str) -> None:
    """Remove a socket file that a killed server left behind; a living server's, or any other file, stays."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket is in its place")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(path) != 0:
                os.unlink(path)


class AcceptQueue:
    """What the kernel tells of the listen queues of one server."""

    __slots__ = ("_listeners", "_now", "_read_at", "_start")

    def __init__(self, listeners: Iterable[object] = ()) -> None:
        self._listeners = [item for item in listeners if isinstance(item, SocketListener) and item.queue() is not None]
        self._start = self._now = _overflows() if self._listeners else None
        self._read_at = -math.inf

    def fill(self) -> tuple[int | None, int | None]:
        """How many wait to be accepted, and how many may, at the listener whose queue is the fullest."""
        queues = [queue for queue in (listener.queue() for listener in self._listeners) if queue is not None]
        return max(queues, key=lambda queue: queue[0] / max(1, queue[1]), default=(None, None))

    def overflows(self) -> int | None:
        """Connections that found a queue full since the start; looked up ten times a second at most, as that takes 0.1 ms."""
        if self._start is None:
            return None
        now = trio.current_time()
        if now - self._read_at >= READ_PAUSE:
            self._read_at = now
            latest = _overflows()  # None without a descriptor to read it.
            self._now = self._now if latest is None else latest
        return None if self._now is None else self._now - self._start


def _overflows() -> int | None:
    """How many connections have found a listen queue full, of any TCP socket in this network namespace, since it is there.

    None where that is not known: elsewhere than on Linux, or without a descriptor to read it.
    """
    try:
        with open("/proc/thread-self/net/netstat", "rb") as file:
            names, numbers = file.read().split(b"\n", 2)[:2]
    except (OSError, ValueError):
        return None
    found = dict(zip(names.split(), numbers.split(), strict=False)).get(b"ListenOverflows")
    return None if found is None else int(found)
