"""Ways to serve: until drained, for a block, on listeners of one's own, over a single stream."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import trio

from ._accepting import AnyListener
from ._address import Address, is_loopback
from ._authorization import Authorize
from ._call import Interceptor
from ._checks import check_type
from ._config import Heartbeat, ServerLimits
from ._listening import listen
from ._policies import AdaptiveLimit
from ._server import Server, keep_serving
from ._settings import CODECS, Authenticate, ServerSettings
from ._tls import ContextSource

__all__ = ["open_server", "serve", "serve_listeners", "serve_stream"]

Place: TypeAlias = str | AnyListener


@asynccontextmanager
async def open_server(
    services: object,
    address: Place | Sequence[Place],
    *,
    limits: ServerLimits = ServerLimits(),  # noqa: B008 - frozen
    heartbeat: Heartbeat = Heartbeat(),  # noqa: B008 - frozen
    ssl_context: ContextSource | None = None,
    authenticate: Authenticate | None = None,
    authorize: Authorize | None = None,
    allow_insecure: bool = False,
    interceptors: Sequence[Interceptor] = (),
    debug: bool = False,
    codecs: Sequence[str] = CODECS,
    adaptive: AdaptiveLimit | None = None,
) -> AsyncIterator[Server]:
    """Serve for the length of a block; see `serve`. The server is listening when the block begins."""
    settings = ServerSettings(
        limits=limits,
        heartbeat=heartbeat,
        ssl_context=ssl_context,
        authenticate=authenticate,
        authorize=authorize,
        allow_insecure=allow_insecure,
        interceptors=interceptors,
        debug=debug,
        codecs=codecs,
        adaptive=adaptive,
    )
    server = Server(services, settings)
    listeners = await _listen_all(_places(address, settings), limits.backlog)
    addresses = [str(getattr(listener, "address", None) or repr(listener)) for listener in listeners]
    async with keep_serving(server, listeners, addresses):
        yield server


def _places(address: Place | Sequence[Place], settings: ServerSettings) -> list[Address | AnyListener]:
    several = list(address) if isinstance(address, Sequence) and not isinstance(address, str | bytes) else [address]
    if not several:
        raise ValueError("a server needs an address or listener: the list is empty")
    places = [item if isinstance(item, trio.abc.Listener) else Address.parse(item) for item in several]
    for place in places:
        if isinstance(place, Address):
            _check_exposure(place, settings)
        else:
            _check_listener(place, settings)
    return places


async def _listen_all(places: Sequence[Address | AnyListener], backlog: int) -> Sequence[AnyListener]:
    """Open all listeners, or none."""
    listeners: list[AnyListener] = []
    try:
        for place in places:
            listeners += await listen(place, backlog) if isinstance(place, Address) else [place]
    except BaseException:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
        raise
    return listeners


def _check_exposure(address: Address, settings: ServerSettings) -> None:
    ssl_context = settings.ssl_context
    if (address.scheme == "tls") != (ssl_context is not None) and address.scheme != "unix":
        raise ValueError(
            f"{address} and ssl_context do not go together: tls:// needs an ssl_context for the server's certificate, "
            "and tcp:// takes none"
        )
    if not address.is_local:
        _check_secured(address, settings)


def _check_listener(listener: AnyListener, settings: ServerSettings) -> None:
    """One of the user's own, as far as its socket tells: what does TLS by itself has none here."""
    sock: Any = getattr(listener, "socket", None)
    if getattr(sock, "family", None) in (socket.AF_INET, socket.AF_INET6):
        host, port = sock.getsockname()[:2]
        if not is_loopback(host):
            _check_secured(Address("tcp", host, port), settings)


def _check_secured(address: Address, settings: ServerSettings) -> None:
    if settings.ssl_context is None and settings.authenticate is None and not settings.allow_insecure:
        raise ValueError(
            f"{address} can be reached from other machines without TLS or authentication: give an ssl_context or "
            "authenticate=, listen on 127.0.0.1, or say allow_insecure=True"
        )


async def serve(
    services: object,
    address: Place | Sequence[Place],
    *,
    limits: ServerLimits = ServerLimits(),  # noqa: B008 - frozen
    heartbeat: Heartbeat = Heartbeat(),  # noqa: B008 - frozen
    ssl_context: ContextSource | None = None,
    authenticate: Authenticate | None = None,
    authorize: Authorize | None = None,
    allow_insecure: bool = False,
    interceptors: Sequence[Interceptor] = (),
    debug: bool = False,
    codecs: Sequence[str] = CODECS,
    adaptive: AdaptiveLimit | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one object or several at one address or several, until drained or cancelled.

    `server = await nursery.start(trio_rpc.serve, WarehouseInventory(db), "tcp://127.0.0.1:7000")` starts it and gives
    the Server, whose `addresses` have the real ports.

    Args:
        services: an object with methods under `@trio_rpc.method`, or several of them.
        address: `tcp://host:port`, `tls://host:port`, `unix:///path`, `unix:@name`, a `trio.abc.Listener` of your own,
            or several of these. Port 0 takes any free one.
        limits: sizes and times, see `ServerLimits`.
        heartbeat: when a silent client is pinged and given up.
        ssl_context: for `tls://`, or a function that gives it for each handshake. All addresses speak TLS then, UNIX too.
        authenticate: `authenticate(credentials, origin)`, async or not, returns the principal or an `Identity`, or raises
            Unauthenticated; asked once for each connection. Equal principals are one: for limits and idempotency keys.
        authorize: `authorize(peer, method)` says whether this peer may call this method; a plain function.
        allow_insecure: listen beyond this machine without TLS or authentication.
        interceptors: wrap every handler; the first is the outermost. A call whose idempotency key has a handler, or a
            result, runs none and passes none: whether it may be made is for `authorize` to say.
        debug: send the text and traceback of undeclared exceptions to the caller. Never for strangers.
        codecs: the codecs that clients may choose from: an allowlist.
        adaptive: a limit on handlers at once that follows the latency, beside those in `limits`.
        task_status: for `nursery.start`; it gets the Server once it listens.

    Resource handling: when it ends, nothing is left. Cancelling it cancels and joins the handlers, and tells callers.

    Error handling: no peer and no handler ends it. OSError if an address cannot be listened on, or accepting fails there
    for good, which drains the server first (10 s). Before anything is opened, TypeError or ValueError for bad options.
    """
    options: dict[str, Any] = {
        "limits": limits,
        "heartbeat": heartbeat,
        "ssl_context": ssl_context,
        "authenticate": authenticate,
        "authorize": authorize,
        "allow_insecure": allow_insecure,
        "interceptors": interceptors,
        "debug": debug,
        "codecs": codecs,
        "adaptive": adaptive,
    }
    async with open_server(services, address, **options) as server:
        task_status.started(server)
        await server._closed.wait()


async def serve_listeners(
    services: object,
    listeners: Sequence[AnyListener],
    *,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """Serve what arrives at listeners of your own, whatever streams they accept; `options` as for `serve`."""
    await serve(services, listeners, task_status=task_status, **options)


async def serve_stream(services: object, stream: trio.abc.Stream, **options: Any) -> None:
    """Serve a single connection over any `trio.abc.Stream` (memory, TLS, a subprocess's pipes) until it ends.

    `options` as for `serve`, and cancelling it does the same. The stream is closed in the end.
    """
    check_type("stream", stream, trio.abc.Stream)
    try:
        settings = ServerSettings(**options)
        async with keep_serving(Server(services, settings), [], []) as server:
            await server.attend_apart(stream)
    finally:
        await trio.aclose_forcefully(stream)  # Cancelled early, it was never the server's.
