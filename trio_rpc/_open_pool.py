"""Ways to open a pool: for a block, in any nursery, over one stream that is there already."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio

from ._address import Address, dial
from ._call import Interceptor
from ._checks import brief, check_type
from ._config import Heartbeat, PoolLimits
from ._credentials import Credentials
from ._dialler import Dial, Site
from ._endpoint import Endpoint, endpoints
from ._errors import ConnectError
from ._hub import Hub
from ._policies import Balance, CircuitBreaker, HedgePolicy, OutlierEjection, PowerOfTwo, RetryPolicy
from ._pool import Pool, keep_open
from ._settings import PoolSettings, Prepare, check_context
from ._tls import ContextSource
from .resolvers._targets import resolver_for
from .wire import Metadata

__all__ = ["AnyTarget", "open_connection", "open_pool", "run_pool"]

AnyTarget: TypeAlias = (
    str
    | Endpoint
    | Iterable[str | Endpoint]
    | AsyncIterable[Iterable[str | Endpoint] | str | Endpoint]
    | Dial
    | Mapping[str, Dial]
)


def open_pool(
    target: AnyTarget,
    *,
    codec: str = "msgpack",
    limits: PoolLimits = PoolLimits(),  # noqa: B008 - frozen
    heartbeat: Heartbeat = Heartbeat(),  # noqa: B008 - frozen
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
    hedge: HedgePolicy | None = None,
    balance: Balance = PowerOfTwo(),  # noqa: B008 - frozen
    ejection: OutlierEjection | None = OutlierEjection(),  # noqa: B008 - frozen
    breaker: CircuitBreaker | None = None,
    health_check: str | None = None,
    on_connect: Prepare | None = None,
    ssl_context: ContextSource | None = None,
    credentials: Credentials = None,
    metadata: Metadata | None = None,
    services: object = (),
    interceptors: Sequence[Interceptor] = (),
) -> AbstractAsyncContextManager[Pool]:
    """Open a pool of connections to `target`, dialled in the background, for the length of a block.

    Leaving it cancels and joins the calls still in flight, and leaves nothing. The body's exception comes out bare.

    Args:
        target: an address (`tcp://host:port`, `tls://host:port`, `unix:///path`, `unix:@name`) or `Endpoint`; a list of
            them; `dns://host:port`, `file:///path` or another resolver, an async iterable of whole sets of them; or an
            async function that opens a `trio.abc.Stream` of any kind, or a mapping of names to such functions.
        codec: `msgpack` or `json`, or one that was registered; the server must allow it.
        limits: sizes and times, see `PoolLimits`.
        heartbeat: when a silent server is pinged and given up.
        retry: for idempotent methods; what surely did not run is retried in any case.
        hedge: second attempts of idempotent methods while the first has not answered.
        balance: which of several endpoints a call goes to: `PowerOfTwo`, `RoundRobin` or `LeastInFlight`.
        ejection: leaves out for a while those of several endpoints that fail far more than the others.
        breaker: leaves out an endpoint that fails, even the only one; calls then raise `CircuitOpen`.
        health_check: the service whose health (`trio_rpc.health`) is asked for, which takes a place on each connection.
        on_connect: `async def on_connect(peer)`, awaited for each new connection before calls go there.
        ssl_context: for `tls://`, or a function that gives it for each dial; by default the system's authorities count.
        credentials: a token, a mapping, or a (possibly async) function that returns one for each dial.
        metadata: sent with every call.
        services: objects that the server may call back.
        interceptors: wrap every call; the first is the outermost.
    """
    settings = PoolSettings(
        codec=codec,
        limits=limits,
        heartbeat=heartbeat,
        retry=retry,
        hedge=hedge,
        balance=balance,
        ejection=ejection,
        breaker=breaker,
        health_check=health_check,
        on_connect=on_connect,
        credentials=credentials,
        metadata=metadata,
        services=services,
        interceptors=interceptors,
    )
    return keep_open(partial(_make_hub, target, ssl_context, settings))


def _make_hub(target: AnyTarget, ssl_context: ContextSource | None, settings: PoolSettings) -> Hub:
    """Find out what kind of target it is. What is no target is told before anything is dialled."""
    check_context(ssl_context, server_side=False)
    site_of = partial(_site_of, ssl_context)
    resolver = resolver_for(target, ssl_context) if isinstance(target, str) else None
    if resolver is not None:
        return Hub(str(target), (), settings, resolver=resolver, site_of=site_of)
    if isinstance(target, AsyncIterable):
        return Hub(_name_of(target), (), settings, resolver=target, site_of=site_of)
    sites = _sites_of(target, ssl_context)
    if not sites:
        kind = "mapping" if isinstance(target, Mapping) else "list of addresses"
        raise ValueError(f"a pool needs at least one endpoint: the {kind} is empty")
    return Hub(", ".join(site.address for site in sites), sites, settings)


def _sites_of(target: Any, ssl_context: ContextSource | None) -> list[Site]:
    if inspect.isasyncgenfunction(target):
        name = _name_of(target)
        raise TypeError(f"{name} is an async generator function, and a resolver is what it gives: write {name}()")
    if callable(target):
        target = {_name_of(target): target}
    if isinstance(target, Mapping):
        if ssl_context is not None:
            raise ValueError("a function that opens streams does its own TLS: give ssl_context to it, not to open_pool")
        return [_own_site(name, dial) for name, dial in target.items()]
    if isinstance(target, bytes | bytearray) or not isinstance(target, Iterable | Endpoint):
        raise TypeError(
            f"an address is a text like 'tcp://127.0.0.1:7000', not {target!r:.80}; a target may also be a list of these"
        )
    return [_site_of(ssl_context, endpoint) for endpoint in endpoints(target)]


def _own_site(name: Any, dial: Any) -> Site:
    check_type("a name of an endpoint", name, str)
    if not callable(dial):
        advice = ": for addresses write a list of these" if isinstance(dial, str | Endpoint) else ""
        raise TypeError(f"{name!r:.80} must map to an async function that opens a stream, not to {brief(dial)}{advice}")
    return Site(name, partial(_open_stream, name, dial))


async def _open_stream(name: str, dial: Any) -> trio.abc.Stream:
    waiting: Any = dial()
    if not inspect.isawaitable(waiting):
        text = f"{name} must be an async function that opens a stream: it returned {brief(waiting)}, nothing to await"
        raise ConnectError(text, peer=name, permanent=True)
    stream: trio.abc.Stream = await waiting
    return stream


def _name_of(target: Any) -> str:
    name: str = getattr(target, "__qualname__", repr(target))
    return name


def _site_of(ssl_context: ContextSource | None, endpoint: Endpoint) -> Site:
    address = Address.parse(endpoint.address)
    if ssl_context is not None and address.scheme == "tcp":
        raise ValueError(f"{address} and ssl_context do not go together: write tls://{str(address)[6:]}")
    return Site(endpoint.address, partial(dial, address, ssl_context, endpoint.hostname), endpoint.weight)


async def run_pool(
    target: AnyTarget,
    *,
    task_status: trio.TaskStatus[Pool] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """The same pool, owned by any nursery: `pool = await nursery.start(trio_rpc.run_pool, target)`.

    Takes the options of `open_pool`. Returns after `pool.aclose()`; cancelling it closes the pool first.
    """
    async with open_pool(target, **options) as pool:
        task_status.started(pool)
        await pool._hub.keeper.closed.wait()


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

    name = "the given stream"
    check_type("stream", stream, trio.abc.Stream)
    settings = PoolSettings(
        codec=codec,
        limits=limits,
        heartbeat=heartbeat,
        retry=retry,
        credentials=credentials,
        metadata=metadata,
        services=services,
        interceptors=interceptors,
        redial=False,
    )
    one = attrs.evolve(
        limits, min_connections=0, max_connections=1, max_lifetime=None, idle_timeout=None, max_idle=None
    )
    hub = Hub(name, [Site(name, the_stream)], attrs.evolve(settings, limits=one))
    try:
        async with keep_open(lambda: hub) as pool:
            await pool.connect()
            yield pool
    finally:
        await trio.aclose_forcefully(stream)  # Cancelled early, it was never the pool's.
