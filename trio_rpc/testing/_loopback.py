"""A real client and a real server, joined in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

import trio_rpc

from ._pipes import memory_pipe

__all__ = ["MemoryListener", "open_loopback"]

NO_HEARTBEAT = trio_rpc.Heartbeat(interval=None)


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener for `serve_listeners`, and the function that connects to it, for `open_pool`.

    Args:
        capacity: bytes that each direction of a connection holds before its sender waits; None for no bound.
        wrap: put around the client's end of each connection: a FaultyStream, for one.
    """

    def __init__(
        self,
        *,
        capacity: int | None = 64 * 1024,
        wrap: Callable[[trio.abc.Stream], trio.abc.Stream] = lambda stream: stream,
    ) -> None:
        self.capacity = capacity
        self.wrap = wrap
        self.connections: list[trio.abc.Stream] = []
        """The clients' ends of all connections so far, as they were wrapped."""
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](1000)

    def __repr__(self) -> str:
        return f"<MemoryListener: {len(self.connections)} connections so far>"

    async def connect(self) -> trio.abc.Stream:
        """Open a connection; OSError once nobody listens any more, as with a real address."""
        ours, theirs = memory_pipe(self.capacity)
        try:
            await self._send.send(theirs)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise trio_rpc.ConnectError("nobody listens at this end of memory any more") from None
        self.connections.append(self.wrap(ours))
        return self.connections[-1]

    async def accept(self) -> trio.abc.Stream:
        """The next connection."""
        return await self._receive.receive()

    async def aclose(self) -> None:
        """Stop listening."""
        await self._receive.aclose()


@asynccontextmanager
async def open_loopback(
    services: object,
    *,
    codec: str = "msgpack",
    limits: trio_rpc.PoolLimits = trio_rpc.PoolLimits(),  # noqa: B008 - frozen
    server_limits: trio_rpc.ServerLimits = trio_rpc.ServerLimits(),  # noqa: B008 - frozen
    heartbeat: trio_rpc.Heartbeat = NO_HEARTBEAT,
    server_heartbeat: trio_rpc.Heartbeat = NO_HEARTBEAT,
    retry: trio_rpc.RetryPolicy = trio_rpc.RetryPolicy(),  # noqa: B008 - frozen
    hedge: trio_rpc.HedgePolicy | None = None,
    breaker: trio_rpc.CircuitBreaker | None = None,
    health_check: str | None = None,
    on_connect: Callable[[trio_rpc.Peer], Awaitable[object]] | None = None,
    credentials: Any = None,
    metadata: Mapping[str, str | bytes] | None = None,
    callbacks: object = (),
    interceptors: Sequence[trio_rpc.Interceptor] = (),
    server_interceptors: Sequence[trio_rpc.Interceptor] = (),
    authenticate: Any = None,
    authorize: Any = None,
    adaptive: trio_rpc.AdaptiveLimit | None = None,
    debug: bool = False,
    capacity: int | None = 64 * 1024,
    wrap: Callable[[trio.abc.Stream], trio.abc.Stream] = lambda stream: stream,
) -> AsyncIterator[trio_rpc.Pool]:
    """A pool over the in-memory wire: real client, server, codec and framing, no port.

    Heartbeats are off on both sides unless asked for, so that an autojump clock comes to rest. Options are those of
    `open_pool` and `serve`; where both have one, the server's begins with `server_`, and the client's own services
    are `callbacks`. `capacity` and `wrap` as for MemoryListener.
    """
    listener = MemoryListener(capacity=capacity, wrap=wrap)
    server_options = {
        "limits": server_limits,
        "heartbeat": server_heartbeat,
        "interceptors": server_interceptors,
        "authenticate": authenticate,
        "authorize": authorize,
        "adaptive": adaptive,
        "debug": debug,
    }
    async with (
        trio_rpc.open_server(services, listener, **server_options),
        trio_rpc.open_pool(
            listener.connect,
            codec=codec,
            limits=limits,
            heartbeat=heartbeat,
            retry=retry,
            hedge=hedge,
            breaker=breaker,
            health_check=health_check,
            on_connect=on_connect,
            credentials=credentials,
            metadata=metadata,
            services=callbacks,
            interceptors=interceptors,
        ) as pool,
    ):
        yield pool
