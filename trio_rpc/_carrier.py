"""The stream under one connection: its one writer, and how it ends.

A socket and any other stream differ in much, and the difference is here. A socket takes at once what it has room for
and is closed without waiting, so it needs a writer only when a write has to wait, or comes from many tasks. Sending to
any other stream and closing it have to be awaited, so that has a writer from the start, who also closes it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextvars import Context
from functools import partial

import trio

from ._config import Limits
from ._logs import limited
from ._outbox import Outbox
from ._sockets import SocketStream
from ._watch import Watch
from .wire import Bytes

__all__ = ["Carrier"]

log = limited(logging.getLogger("trio_rpc.connection"))

SLICE_SIZE = 16 * 1024
"""What a stream that is no socket is given at once: one TLS record, 2 s on a link of 8 KiB/s."""


class Carrier:
    """Takes what the outbox has to the peer. `lose(text, cause)` is told when it has come to an end."""

    __slots__ = (
        "_address",
        "_closed",
        "_limits",
        "_lose",
        "_nursery",
        "_outbox",
        "_socket",
        "_stream",
        "_watch",
        "goodbye",
    )

    _nursery: trio.Nursery | None
    """Where the writer of a socket is started."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        outbox: Outbox,
        watch: Watch,
        *,
        limits: Limits,
        address: str,
        lose: Callable[[str, BaseException | None], object],
    ) -> None:
        self.goodbye: bytes = b""
        """What is sent at last, ahead of all that is queued, if there is room for it."""
        self._stream = stream
        self._outbox = outbox
        self._watch = watch
        self._limits = limits
        self._address = address
        self._lose = lose
        self._nursery = None
        self._closed = False
        transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._socket = watch.socket = transport if isinstance(transport, SocketStream) else None

    @property
    def is_socket(self) -> bool:
        """Whether `begin` and `close` are enough, and `write` need not be awaited by the connection's own task."""
        return isinstance(self._stream, SocketStream)

    def begin(self, nursery: trio.Nursery, on_open: Callable[[], object] | None, *, flush: bool) -> None:
        """Send over a socket from now on, first what `on_open` puts; at once, unless another flush follows."""
        assert isinstance(self._stream, SocketStream)
        self._nursery = nursery
        self._stream.on_progress = self._outbox.progressed
        self._outbox.send_now = self._stream.socket.send
        if on_open is not None:
            on_open()
        self._outbox.begin(self._start_writer, flush=flush)

    def is_clogged(self) -> bool:
        """The peer does not take what it has asked for; begin no more for it meanwhile, but go on reading."""
        return self._outbox.is_beyond(self._limits.max_queued_bytes)

    def _start_writer(self) -> None:
        """In a clean context, and not in that of whoever happened to write first."""
        assert self._nursery is not None
        Context().run(partial(self._nursery.start_soon, self.write, name="trio_rpc connection writer"))

    @trio.lowlevel.enable_ki_protection
    async def write(self) -> None:
        """The one task that waits to send. After an error the reader may still take what has arrived, for a bounded time."""
        try:
            await self._outbox.run(self._send_to_socket if isinstance(self._stream, SocketStream) else self._send)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            if self._closed:
                return
            await trio.sleep(self._limits.close_timeout)
            self._lose("the connection broke while sending", exc)
            return
        except Exception as exc:  # A stream of the program's own may fail in any way. `Contained` will log it.
            self._lose("the stream failed while sending", exc)
            raise
        if self._closed:
            return
        try:
            if not isinstance(self._stream, SocketStream):
                await self._stream.aclose()
        except Exception:  # A stream of the user's may fail in any way; it must not end its pool or server.
            log.warning("the stream to %s failed while closing", self._address, exc_info=True)
        self._lose("the connection was closed on this side", None)

    async def _send(self, buffers: list[Bytes]) -> None:
        """Send a batch. Progress shows within it, so that a slow link is not taken for a stuck one."""
        self._watch.writing()
        for buffer in buffers:
            view = memoryview(buffer)
            for start in range(0, len(view), SLICE_SIZE):
                await self._stream.send_all(view[start : start + SLICE_SIZE])
                self._outbox.progressed()

    async def _send_to_socket(self, buffers: list[Bytes]) -> None:
        """The same; the socket tells of its progress."""
        assert isinstance(self._stream, SocketStream)
        self._watch.writing()
        await self._stream.send_buffers(buffers)

    def abandon(self) -> None:
        """The peer is given up: let the transport's end be a reset.

        An orderly end would wait in the kernel, behind bytes that nobody takes. It would keep their memory for minutes,
        and a peer who only cannot be heard would not learn of it.
        """
        if self._socket is not None:
            self._socket.abandon()

    def close(self) -> bool:
        """The connection has ended: close a socket. True if that is enough to end its task, as there is no other.

        It wakes the reader, whom the scope would have to cancel, at more cost.
        """
        self._closed = True
        if not isinstance(self._stream, SocketStream):
            return False
        if self.goodbye:
            with contextlib.suppress(OSError):
                self._stream.socket.send(self.goodbye)
        self._stream.close()
        return self._nursery is not None and not self._nursery.child_tasks

    async def aclose(self) -> None:
        """Close any other stream; bounded, and never an error."""
        if isinstance(self._stream, SocketStream):
            return  # `close` has done it.
        try:
            if self.goodbye:
                with (
                    trio.CancelScope(shield=True, deadline=trio.current_time() + self._limits.close_timeout),
                    contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
                ):
                    await self._stream.send_all(self.goodbye)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)
