"""Serving: listeners, one supervised task for each connection, drain.

Nothing that a peer or a handler does ends the server: a connection's task logs what it dies of, a failing accept is
tried again. As in the pool, everything runs in a shielded nursery that ends by its own exit alone: outside
cancellation first stops accepting and cancels and joins the handlers, with I/O still going on to tell the callers.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio

from ._address import Address, listen, peer_name
from ._call import Interceptor
from ._calls import Endpoint
from ._config import Heartbeat, ServerLimits
from ._connection import Connection, ConnectionCounters
from ._contract import describe_services
from ._dispatch import Authorize, compile_services
from ._errors import ConnectError, ConnectionFailed, RpcError, Unauthenticated
from ._handshake import answer
from ._peer import Peer
from ._scope import hidden_nursery
from ._timer import Timer
from ._tls import start_tls, why
from .wire import Event, Hello, Protocol, Role

__all__ = ["Server", "ServerStatistics", "open_server", "serve", "serve_listeners", "serve_stream"]

log = logging.getLogger("trio_rpc.server")

ACCEPT_PAUSE = 0.1
"""Pause after a failed accept: out of file descriptors, usually. The kernel keeps the callers in its queue."""
LOG_PAUSE = 5.0
"""At most one line about failing accepts in so many seconds."""

CODECS = ("msgpack", "json")
"""What clients may speak unless told otherwise."""

Authenticate = Callable[[Mapping[str, Any], str], Any]
"""`authenticate(credentials, address)` returns the principal, or raises Unauthenticated; it may be async."""


AnyListener: TypeAlias = trio.abc.Listener[Any]
Place: TypeAlias = str | AnyListener


@attrs.frozen(kw_only=True)
class ServerStatistics:
    """A snapshot of a server; counts are since its start."""

    connections: int
    """Connections that are open, after their HELLO."""
    handshaking: int
    """Connections that have not said HELLO yet."""
    in_flight: int
    """Handlers running."""
    calling_back: int
    """Calls of ours to the clients that have not ended."""
    accepted: int
    """Connections accepted."""
    refused_connections: int
    """Connections that failed before or by their HELLO."""
    served: int
    """Requests whose handlers were begun, or were about to be."""
    refused: int
    """Requests refused for lack of room."""
    evicted: int
    """Connections given up because the peer was unresponsive."""
    accept_errors: int
    """Failed accepts; each was tried again."""


@attrs.define
class _Counters:
    accepted: int = 0
    refused_connections: int = 0
    accept_errors: int = 0


class Server:
    """What serves some objects at some addresses. Made by `serve`, `open_server` and their kin."""

    def __init__(
        self,
        services: object,
        *,
        limits: ServerLimits,
        heartbeat: Heartbeat,
        ssl_context: ssl.SSLContext | None = None,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
        interceptors: Sequence[Interceptor] = (),
        debug: bool = False,
        codecs: Sequence[str] = CODECS,
    ) -> None:
        self.limits = limits
        self.heartbeat = heartbeat
        self.addresses: tuple[str, ...] = ()
        self._specs = describe_services(services)
        self._ssl_context = ssl_context
        self._authenticate = authenticate
        self._codecs = tuple(codecs)
        limiter = trio.CapacityLimiter(limits.max_threads)
        self._endpoints: dict[str, Mapping[str, Endpoint]] = {
            codec: compile_services(
                self._specs, codec, authorize=authorize, interceptors=interceptors, limiter=limiter, debug=debug
            )
            for codec in self._codecs
        }
        self._base_context = copy_context()
        self._timer = Timer()
        self._counters = _Counters()
        self._connection_counters = ConnectionCounters()
        self._connections: set[Connection] = set()
        self._handshaking = 0
        self._room = trio.lowlevel.ParkingLot()
        self._listeners: Sequence[AnyListener] = ()
        self._accepting = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._running = trio.Event()
        self._drained = trio.Event()
        self._draining = False
        self._closed = trio.Event()
        self._logged_at = -math.inf

    def __repr__(self) -> str:
        stats = self.statistics()
        state = "closed" if self._closed.is_set() else "draining" if self._draining else "serving"
        names = ", ".join(spec.name for spec in self._specs)
        where = ", ".join(self.addresses) or "no address"
        return f"<Server of {names} at {where} ({state}): {stats.connections} connections, {stats.in_flight} calls in flight>"

    def statistics(self) -> ServerStatistics:
        """A snapshot; cheap."""
        counters = self._connection_counters
        return ServerStatistics(
            connections=len(self._connections),
            handshaking=self._handshaking,
            in_flight=sum(len(connection.serving) for connection in self._connections),
            calling_back=sum(connection.in_flight for connection in self._connections),
            served=counters.served,
            refused=counters.refused,
            evicted=counters.evicted,
            **attrs.asdict(self._counters),
        )

    async def drain(self, grace: float = 10.0) -> None:
        """Stop without losing anything: no new connections or requests, what was accepted is finished.

        Handlers that still run after `grace` seconds are cancelled; their callers get RemoteCancelled. Returns when
        everything has ended and the peers have closed; then `serve` returns too. A second call may shorten the grace.
        """
        self._begin_drain()
        with trio.move_on_after(grace):
            await self._wait_quiet()
        for connection in list(self._connections):
            connection.stop_serving("the server is going away")
        with trio.move_on_after(self.limits.cancel_wait):
            await self._wait_quiet()
        with trio.move_on_after(
            self.limits.close_timeout
        ):  # The peers close; closing first would reset what they send.
            while self._connections:
                await self._room.park()
        self._drained.set()
        await self._closed.wait()

    def _begin_drain(self) -> None:
        if not self._draining:
            self._draining = True
            self._accepting.cancel()
            for connection in self._connections:
                connection.drain("the server is going away")

    async def _wait_quiet(self) -> None:
        for connection in list(self._connections):
            await connection.wait_quiet()

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self, listeners: Sequence[AnyListener], addresses: Sequence[str]) -> None:
        """Serve until drained. Owned by `open_server` alone."""
        self.addresses = tuple(addresses)
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._timer.run, name="trio_rpc server timer")
                    nursery.start_soon(self._accept_all, listeners, name="trio_rpc server listeners")
                    self._running.set()
                    await self._drained.wait()
                    await self._close_connections()
                    nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._closed.set()

    async def shut_down(self) -> None:
        """End now: handlers are cancelled and joined, bounded."""
        if not self._closed.is_set():
            await self.drain(grace=0)

    async def _close_connections(self) -> None:
        async with trio.open_nursery() as nursery:
            for connection in list(self._connections):
                nursery.start_soon(connection.aclose)

    async def _accept_all(self, listeners: Sequence[AnyListener]) -> None:
        try:
            with self._accepting:
                async with trio.open_nursery() as nursery:
                    for listener in listeners:
                        nursery.start_soon(self._accept, listener)
        finally:
            with trio.CancelScope(shield=True):
                for listener in listeners:
                    await listener.aclose()

    async def _accept(self, listener: AnyListener) -> None:
        assert self._nursery is not None
        while True:
            await self._wait_for_room()
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as exc:
                await self._pause_accepting(exc)
                continue
            self._counters.accepted += 1
            self._nursery.start_soon(self.attend, stream, name="trio_rpc server connection")

    async def _wait_for_room(self) -> None:
        limit = self.limits.max_connections
        while limit is not None and len(self._connections) + self._handshaking >= limit:
            await self._room.park()

    async def _pause_accepting(self, exc: OSError) -> None:
        self._counters.accept_errors += 1
        now = trio.current_time()
        if now - self._logged_at >= LOG_PAUSE:
            self._logged_at = now
            log.warning("accept failed, trying again: %s (%d times so far)", exc, self._counters.accept_errors)
        await trio.sleep(ACCEPT_PAUSE)

    # -- one connection --------------------------------------------------------------------------------------------

    async def attend(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end. Raises nothing of the peer's or a handler's."""
        address = peer_name(stream)
        if self._ssl_context is not None:
            address = address.replace("tcp://", "tls://", 1)
        try:
            connection, early = await self._shake_hands(stream, address)
        except (RpcError, OSError, trio.TooSlowError, ssl.SSLError) as exc:
            self._counters.refused_connections += 1
            log.info("no connection with %s: %.300s", address, str(exc) or type(exc).__name__)
            return
        except Exception:
            self._counters.refused_connections += 1
            log.exception("the handshake with %s failed inside", address)
            return
        self._connections.add(connection)
        if self._draining:
            connection.drain("the server is going away")
        try:
            await connection.run(early)
        finally:
            self._connections.discard(connection)
            self._room.unpark_all()

    async def _shake_hands(self, stream: trio.abc.Stream, address: str) -> tuple[Connection, list[Event]]:
        self._handshaking += 1
        timeout = self.limits.handshake_timeout
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                stream = await self._secure(stream)
                principal: list[Any] = []
                protocol = Protocol(Role.ACCEPTOR, self._hello(""))
                early = await answer(stream, protocol, lambda hello: self._admit(hello, address, principal))
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        finally:
            self._handshaking -= 1
            self._room.unpark_all()
        return self._make_connection(stream, protocol, address, principal[0]), early

    async def _secure(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        if self._ssl_context is None:
            return stream
        try:
            return await start_tls(stream, self._ssl_context, server_side=True)
        except trio.BrokenResourceError as exc:
            raise ConnectionFailed(f"TLS handshake failed: {why(exc)}") from exc

    async def _admit(self, hello: Hello, address: str, principal: list[Any]) -> Hello:
        """Choose a codec, check the credentials; what it raises is told to the peer."""
        codec = next((name for name in hello.codecs if name in self._codecs), None)
        if codec is None:
            theirs, ours = ", ".join(hello.codecs)[:80], ", ".join(self._codecs)
            raise ConnectError(f"no codec in common: the client speaks {theirs}, this server {ours}", permanent=True)
        result = None
        if self._authenticate is not None:
            result = await self._check_credentials(hello.credentials or {}, address)
        principal.append(result)
        return self._hello(codec)

    async def _check_credentials(self, credentials: Mapping[str, Any], address: str) -> Any:
        assert self._authenticate is not None
        try:
            principal = self._authenticate(credentials, address)
            return await principal if isinstance(principal, Awaitable) else principal
        except Unauthenticated:
            raise
        except Exception as exc:
            log.exception("authenticate failed for %s", address)
            raise Unauthenticated("the credentials could not be checked") from exc

    def _hello(self, codec: str) -> Hello:
        return Hello(
            codecs=(codec,),
            max_in_flight=self.limits.max_in_flight,
            max_frame_size=self.limits.max_frame_size,
            max_message_size=self.limits.max_message_size,
            max_metadata_size=self.limits.max_metadata_size,
            stream_window=self.limits.stream_window,
            stream_window_items=self.limits.stream_window_items,
            ping_interval=self.heartbeat.interval,
            ping_timeout=self.heartbeat.timeout,
            services=tuple(spec.name for spec in self._specs),
        )

    def _make_connection(self, stream: trio.abc.Stream, protocol: Protocol, address: str, principal: Any) -> Connection:
        codec = protocol.local.codecs[0]
        connection = Connection(
            stream,
            protocol,
            limits=self.limits,
            heartbeat=self.heartbeat,
            timer=self._timer,
            endpoints=self._endpoints[codec],
            base_context=self._base_context,
            counters=self._connection_counters,
            address=address,
            max_deadline=self.limits.max_deadline,
        )
        connection.make_peer = partial(Peer, codec=codec, timer=self._timer, limits=self.limits, principal=principal)
        return connection


@asynccontextmanager
async def _keep_serving(
    server: Server, listeners: Sequence[AnyListener], addresses: Sequence[str]
) -> AsyncIterator[Server]:
    async with hidden_nursery() as nursery:
        # Not `start`: cancelled in between, it would wait for a server that waits for us.
        nursery.start_soon(server.run, listeners, addresses)
        try:
            with trio.CancelScope(shield=True):  # For one scheduler tick.
                await server._running.wait()
            await trio.lowlevel.checkpoint_if_cancelled()
            yield server
        finally:
            with trio.CancelScope(shield=True):  # Bounded by cancel_wait and close_timeout.
                await server.shut_down()


@asynccontextmanager
async def open_server(
    services: object,
    address: Place | Sequence[Place],
    *,
    limits: ServerLimits = ServerLimits(),  # noqa: B008 - frozen
    heartbeat: Heartbeat = Heartbeat(),  # noqa: B008 - frozen
    ssl_context: ssl.SSLContext | None = None,
    authenticate: Authenticate | None = None,
    authorize: Authorize | None = None,
    allow_insecure: bool = False,
    interceptors: Sequence[Interceptor] = (),
    debug: bool = False,
    codecs: Sequence[str] = CODECS,
) -> AsyncIterator[Server]:
    """Serve for the length of a block; see `serve`. The server is listening when the block begins."""
    server = Server(
        services,
        limits=limits,
        heartbeat=heartbeat,
        ssl_context=ssl_context,
        authenticate=authenticate,
        authorize=authorize,
        interceptors=interceptors,
        debug=debug,
        codecs=codecs,
    )
    several = list(address) if isinstance(address, Sequence) and not isinstance(address, str | bytes) else [address]
    places = [item if isinstance(item, trio.abc.Listener) else Address.parse(item) for item in several]
    for place in places:
        if isinstance(place, Address):
            _check_exposure(place, ssl_context, authenticate, allow_insecure)
    listeners = await _listen_all(places)
    addresses = [str(getattr(listener, "address", None) or repr(listener)) for listener in listeners]
    async with _keep_serving(server, listeners, addresses):
        yield server


async def _listen_all(places: Sequence[Address | AnyListener]) -> Sequence[AnyListener]:
    """Open all listeners, or none."""
    listeners: list[AnyListener] = []
    try:
        for place in places:
            listeners += await listen(place) if isinstance(place, Address) else [place]
    except BaseException:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
        raise
    return listeners


def _check_exposure(
    address: Address, ssl_context: ssl.SSLContext | None, authenticate: Authenticate | None, allow_insecure: bool
) -> None:
    if (address.scheme == "tls") != (ssl_context is not None) and address.scheme != "unix":
        raise ValueError(
            f"{address} and ssl_context do not go together: tls:// needs an ssl_context for the server's certificate, "
            "and tcp:// takes none"
        )
    if not (address.is_local or ssl_context is not None or authenticate is not None or allow_insecure):
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
    ssl_context: ssl.SSLContext | None = None,
    authenticate: Authenticate | None = None,
    authorize: Authorize | None = None,
    allow_insecure: bool = False,
    interceptors: Sequence[Interceptor] = (),
    debug: bool = False,
    codecs: Sequence[str] = CODECS,
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
        ssl_context: for `tls://`, with the server's certificate; with `verify_mode = CERT_REQUIRED` for mutual TLS.
        authenticate: `authenticate(credentials, address)` returns the client's principal or raises Unauthenticated;
            it may be async. Asked once for each connection, within `handshake_timeout`.
        authorize: `authorize(peer, method)` says whether this peer may call this method.
        allow_insecure: listen beyond this machine without TLS or authentication.
        interceptors: wrap every handler; the first is the outermost.
        debug: send the text and traceback of undeclared exceptions to the caller. Never for strangers.
        codecs: the codecs that clients may choose from: an allowlist.
        task_status: for `nursery.start`; it gets the Server once it listens.

    Resource handling: when it returns or raises, no connection, handler or listener is left. Cancelling it cancels
    and joins the handlers, and tells their callers, before anything is closed.

    Error handling: nothing that a peer or a handler does ends it. OSError if an address cannot be listened on;
    TypeError for services that cannot be served, ValueError for addresses that cannot be meant.
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

    `options` as for `serve`. The stream is closed in the end.
    """
    try:
        async with open_server(services, [], **options) as server:
            await server.attend(stream)
    finally:
        await trio.aclose_forcefully(stream)  # Cancelled early, it was never the server's.
