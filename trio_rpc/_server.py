"""Serving: listeners, one supervised task for each connection, drain.

Nothing that a peer or a handler does ends the server: a connection's task logs what it dies of, a failing accept is
tried again. As in the pool, everything runs in a shielded nursery that ends by its own exit alone: outside
cancellation first stops accepting and cancels and joins the handlers, with I/O still going on to tell the callers.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import attrs
import trio

from ._address import peer_name
from ._admission import Admission
from ._ages import MAX_AGE, Ages, see_off
from ._checks import checked_grace
from ._config import Heartbeat, ServerLimits
from ._connection import Connection
from ._contained import Contained
from ._contract import describe_services
from ._dispatch import compile_services
from ._farewell import SETTLE_TIME
from ._incoming import Served
from ._once import Once
from ._reception import Reception
from ._scope import hidden_nursery
from ._settings import ServerSettings
from ._statistics import AdmissionCounters, ConnectionCounters, ServerCounters, ServerStatistics
from ._timer import Timer

__all__ = ["AnyListener", "Server", "keep_serving"]

log = logging.getLogger("trio_rpc.server")

ACCEPT_PAUSE = 0.1
"""Pause after a failed accept: out of file descriptors, usually. The kernel keeps the callers in its queue."""
LOG_PAUSE = 5.0
"""At most one line about failing accepts in so many seconds."""

AnyListener: TypeAlias = trio.abc.Listener[Any]


class Server:
    """What serves some objects at some addresses. Made by `serve`, `open_server` and their kin.

    Attributes:
        addresses: where it listens, with the real ports; each can be given to `open_pool`.
        rng: draws a number from 0 up to 1, for the jitter of `max_age`; tests may give another one.
        instance: a random id of this server, which its clients see; another one after a restart.
    """

    def __init__(self, services: object, settings: ServerSettings) -> None:
        limits = settings.limits
        self.limits: ServerLimits = limits
        self.heartbeat: Heartbeat = settings.heartbeat
        self.addresses: tuple[str, ...] = ()
        self.rng: Callable[[], float] = random.random
        self.instance: str = secrets.token_hex(8)
        self._specs = describe_services(services)
        if not self._specs:
            raise ValueError(
                "nothing is served: give an object with methods under @trio_rpc.method, or several of them"
            )
        self._names = tuple(spec.name for spec in self._specs)
        self._is_secured = settings.ssl_context is not None
        self._timer = Timer()
        self._counters = ServerCounters()
        self._admission_counters = AdmissionCounters()
        self._admission = Admission(
            limits, adaptive=settings.adaptive, counters=self._admission_counters, clock=trio.current_time
        )
        self._once = Once(limits, self._timer, self._counters)
        limiter = trio.CapacityLimiter(limits.max_threads)
        methods: dict[str, Mapping[str, Served]] = {
            codec: compile_services(
                self._specs,
                codec,
                authorize=settings.authorize,
                interceptors=settings.interceptors,
                limiter=limiter,
                debug=settings.debug,
                once=self._once,
            )
            for codec in settings.codecs
        }
        self._connection_counters = ConnectionCounters()
        self._room = trio.lowlevel.ParkingLot()
        self._reception = Reception(
            settings,
            names=self._names,
            methods=methods,
            instance=self.instance,
            timer=self._timer,
            admission=self._admission,
            counters=self._counters,
            connection_counters=self._connection_counters,
            on_room=self._room.unpark_all,
        )
        self._connections: dict[Connection, None] = {}  # In order: what is done to all of them is the same in each run.
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
        names = ", ".join(self._names)
        where = ", ".join(self.addresses) or "no address"
        return f"<Server of {names} at {where} ({state}): {stats.connections} connections, {stats.in_flight} calls in flight>"

    def statistics(self) -> ServerStatistics:
        """A snapshot; cheap."""
        counters = self._connection_counters
        return ServerStatistics(
            connections=len(self._connections),
            handshaking=self._reception.under_way,
            in_flight=self._admission.running + self._admission.exempt,
            calling_back=sum(connection.in_flight for connection in self._connections),
            served=counters.served,
            refused=counters.refused,
            adaptive_limit=self._admission.adaptive_limit,
            expired=counters.expired,
            evicted=counters.evicted,
            **attrs.asdict(self._admission_counters),
            keyed_in_flight=self._once.running,
            kept_results=self._once.kept,
            **attrs.asdict(self._counters),
        )

    async def drain(self, grace: float | None = 10.0) -> None:
        """Stop without losing anything: no new connections or requests, what was accepted is finished.

        Handlers that still run after `grace` seconds (None: never) are cancelled; their callers get RemoteCancelled.
        Returns when everything has ended and the peers have closed; then `serve` returns too. A second call may
        shorten the grace. Raises TypeError or ValueError, and stops nothing, for what is no number of seconds.
        """
        seconds = checked_grace(grace)
        self._begin_drain()
        with trio.move_on_after(seconds):
            await self._wait_quiet()
        self._once.stop("the server is going away")
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
        with trio.move_on_after(SETTLE_TIME):  # Who is in the middle of a HELLO was let in, and may have calls to make.
            while self._reception.under_way:
                await self._room.park()
        for connection in list(self._connections):
            await connection.wait_quiet()
        await self._once.wait_quiet()

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self, listeners: Sequence[AnyListener], addresses: Sequence[str]) -> None:
        """Serve until drained. Owned by `open_server` alone."""
        self.addresses = tuple(addresses)
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    self._nursery = self._once.nursery = nursery
                    nursery.start_soon(self._timer.run, name="trio_rpc server timer")
                    nursery.start_soon(self._accept_all, listeners, name="trio_rpc server listeners")
                    self._running.set()
                    await self._drained.wait()
                    await self._close_connections()
                    nursery.cancel_scope.cancel()
        finally:
            self._nursery = self._once.nursery = None
            self._closed.set()

    async def shut_down(self) -> None:
        """End now: handlers are cancelled and joined, bounded."""
        if not self._closed.is_set():
            await self.drain(grace=0)

    async def _close_connections(self) -> None:
        for connection in list(self._connections):
            connection.finish()
        with trio.move_on_after(self.limits.close_timeout):
            while self._connections:
                await self._room.park()

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
        while limit is not None and len(self._connections) + self._reception.under_way >= limit:
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
        if self._is_secured:
            address = address.replace("tcp://", "tls://", 1)
        connection: Connection | None = None
        ages: Ages | None = None
        try:
            with Contained(address):
                async with trio.open_nursery() as nursery:
                    connection = await self._reception.welcome(stream, address, nursery.cancel_scope)
                    if connection is not None:
                        self._connections[connection] = None
                        ages = self._watch_ages(connection)
                        if self._draining:
                            connection.drain("the server is going away")
                        await connection.run(nursery)
        finally:
            if ages is not None:
                ages.stop()
            if connection is not None:
                self._connections.pop(connection, None)
            self._room.unpark_all()

    def _watch_ages(self, connection: Connection) -> Ages | None:
        limits = self.limits
        if limits.max_age is None and limits.max_idle is None:
            return None
        return Ages(connection, limits, self.rng, lambda reason: self._retire(connection, reason))

    def _retire(self, connection: Connection, reason: str) -> None:
        if self._nursery is None or connection.draining:
            return
        grace: float | None = None
        if reason is MAX_AGE:
            self._counters.closed_age += 1
            grace = self.limits.max_age_grace
        else:
            self._counters.closed_idle += 1
        self._nursery.start_soon(see_off, connection, reason, grace, name="trio_rpc server parting with a connection")

    async def attend_apart(self, stream: trio.abc.Stream) -> None:
        """Like `attend`, out of reach of the caller's cancellation, under which the handlers must be able to answer."""
        assert self._nursery is not None
        ended = trio.Event()

        async def attend() -> None:
            try:
                await self.attend(stream)
            finally:
                ended.set()

        self._nursery.start_soon(attend, name="trio_rpc server connection")
        await ended.wait()


@asynccontextmanager
async def keep_serving(
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
