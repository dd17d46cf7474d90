"""Ways to open a pool: for a block, in any nursery, over one stream that is there already."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import trio

from ._address import Address, dial
from ._call import Interceptor
from ._config import Heartbeat, PoolLimits, RetryPolicy
from ._credentials import Credentials
from ._pool import Dial, Pool, keep_open
from .wire import Metadata

__all__ = ["open_connection", "open_pool", "run_pool"]


def open_pool(
    target: str | Dial,
    *,
    codec: str = "msgpack",
    limits: PoolLimits = PoolLimits(),  # noqa: B008 - frozen
    heartbeat: Heartbeat = Heartbeat(),  # noqa: B008 - frozen
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
    ssl_context: ssl.SSLContext | None = None,
    credentials: Credentials = None,
    metadata: Metadata | None = None,
    services: object = (),
    interceptors: Sequence[Interceptor] = (),
) -> AbstractAsyncContextManager[Pool]:
    """Open a pool of connections to `target`, for the length of a block.

    Entering returns at once; connections are dialled in the background. Leaving the block cancels and joins the calls
    still in flight, and leaves no task, socket, id or credit behind. The body's own exception comes out bare.

    Args:
        target: `tcp://host:port`, `tls://host:port`, `unix:///path` or `unix:@name`; or an async function that opens
            a `trio.abc.Stream` of any kind.
        codec: `msgpack` or `json`, or one that was registered; the server must allow it.
        limits: sizes and times, see `PoolLimits`.
        heartbeat: when a silent server is pinged and given up.
        retry: for idempotent methods; what surely did not run is retried in any case.
        ssl_context: for `tls://`; the default verifies the server against the system's authorities.
        credentials: a token, a mapping, or a (possibly async) function that returns one; sent in each HELLO.
        metadata: sent with every call.
        services: objects that the server may call back.
        interceptors: wrap every call; the first is the outermost.
    """

    def make() -> Pool:
        name, dial_target = _resolve_target(target, ssl_context)
        return Pool(
            name,
            dial_target,
            codec=codec,
            limits=limits,
            heartbeat=heartbeat,
            retry=retry,
            credentials=credentials,
            metadata=metadata,
            services=services,
            interceptors=interceptors,
        )

    return keep_open(make)


def _resolve_target(target: str | Dial, ssl_context: ssl.SSLContext | None) -> tuple[str, Dial]:
    if callable(target):
        if ssl_context is not None:
            raise ValueError("a function that opens streams does its own TLS: give ssl_context to it, not to open_pool")
        return getattr(target, "__qualname__", repr(target)), target
    address = Address.parse(target)
    if ssl_context is not None and address.scheme == "tcp":
        raise ValueError(f"{address} and ssl_context do not go together: write tls://{str(address)[6:]}")
    if address.scheme != "unix" and not address.port:
        raise ValueError(f"{address} has port 0, which is for listening: write the server's port (server.addresses)")
    return str(address), lambda: dial(address, ssl_context)


async def run_pool(
    target: str | Dial,
    *,
    task_status: trio.TaskStatus[Pool] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """The same pool, owned by any nursery: `pool = await nursery.start(trio_rpc.run_pool, target)`.

    Takes the options of `open_pool`. Returns after `pool.aclose()`; cancelling it closes the pool first.
    """
    async with open_pool(target, **options) as pool:
        task_status.started(pool)
        await pool._closed.wait()


@asynccontextmanager
async def open_connection(
    stream: trio.abc.Stream,
    *,
    codec: str = "msgpack",
    limits: PoolLimits = PoolLimits(),  # noqa: B008 - frozen
    heartbeat: Heartbeat = Heartbeat(),  # noqa: B008 - frozen
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
    credentials: Credentials = None,
    metadata: Metadata | None = None,
    services: object = (),
    interceptors: Sequence[Interceptor] = (),
) -> AsyncIterator[Pool]:
    """Call over one stream that is open already: memory, TLS, a subprocess's pipes.

    It is a pool of this one connection, which cannot be dialled again: once it has ended, calls fail at once. The
    HELLOs have been exchanged when the block begins; ConnectError or Unauthenticated if that failed. Options as for
    `open_pool`. The stream is closed in the end.
    """

    async def the_stream() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return stream

    pool = Pool(
        "the given stream",
        the_stream,
        codec=codec,
        limits=attrs.evolve(limits, min_connections=0, max_connections=1, max_lifetime=None, idle_timeout=None),
        heartbeat=heartbeat,
        retry=retry,
        credentials=credentials,
        metadata=metadata,
        services=services,
        interceptors=interceptors,
        redial=False,
    )
    try:
        async with keep_open(lambda: pool):
            await pool.connect()
            yield pool
    finally:
        await trio.aclose_forcefully(stream)  # Cancelled early, it was never the pool's.
