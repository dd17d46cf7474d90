"""Serving: listeners, one supervised task for each connection, drain.

Nothing that a peer or a handler does ends the server: a connection's task logs what it dies of, and `_accepting` goes on
after failures as long as there is hope. As in the pool, everything runs in a shielded nursery that ends by its own exit
alone: outside cancellation first stops accepting and cancels and joins the handlers, with I/O still going on to tell the
callers.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from ._accepting import Accepting, AnyListener, most_connections
from ._address import peer_name
from ._admission import Admission
from ._checks import checked_grace
from ._config import Heartbeat, ServerLimits
from ._connection import Connection
from ._contained import Contained
from ._contract import describe_services
from ._dispatch import compile_services
from ._expiry import GRACE, REVOKED
from ._farewell import SETTLE_TIME
from ._incoming import Served
from ._listening import AcceptQueue
from ._once import Once
from ._partings import Partings
from ._reception import Reception
from ._room import Room, Visit
from ._scope import hidden_nursery
from ._settings import ServerSettings
from ._statistics import AdmissionCounters, ConnectionCounters, ServerCounters, ServerStatistics
from ._timer import Timer

__all__ = ["Server", "keep_serving"]


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
                limits,
                authorize=settings.authorize,
                interceptors=settings.interceptors,
                limiter=limiter,
                debug=settings.debug,
                once=self._once,
            )
            for codec in settings.codecs
        }
        self._connection_counters = ConnectionCounters()
        self._room = Room(limits)
        self._accepting = Accepting(self._room, self._counters, self._begin)
        self._queue = AcceptQueue()
        self._partings = Partings(limits, self._counters, lambda: self.rng())  # noqa: PLW0108 - it may be replaced
        self._reception = Reception(
            settings,
            names=self._names,
            methods=methods,
            instance=self.instance,
            timer=self._timer,
            admission=self._admission,
            counters=self._counters,
            connection_counters=self._connection_counters,
        )
        self._connections: dict[Connection, None] = {}  # In order: what is done to all of them is the same in each run.
        self._nursery: trio.Nursery | None = None
        self._running = trio.Event()
        self._drained = trio.Event()
        self._draining = False
        self._closed = trio.Event()
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        stats = self.statistics()
        state = "closed" if self._closed.is_set() else "draining" if self._draining else "serving"
        names = ", ".join(self._names)
        where = ", ".join(self.addresses) or "no address"
        return f"<Server of {names} at {where} ({state}): {stats.connections} connections, {stats.in_flight} calls in flight>"

    def statistics(self) -> ServerStatistics:
        """A snapshot; cheap: 30 us, and ten times a second 0.1 ms more."""
        counters = self._connection_counters
        accept_queue, accept_queue_limit = self._queue.fill()
        return ServerStatistics(
            connections=len(self._connections),
            handshaking=self._room.strangers,
            max_connections=self._room.most,
            accept_queue=accept_queue,
            accept_queue_limit=accept_queue_limit,
            listen_overflows=self._queue.overflows(),
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
        for connection in list(self._connections):
            if connection.busy_serving:  # Its handlers heed no cancellation: its peer has nothing to wait for.
                connection.finish()
        with trio.move_on_after(
            self.limits.close_timeout
        ):  # The peers close; closing first would reset what they send.
            while self._connections:
                await self._room.wait_change()
        self._drained.set()
        await self._closed.wait()

    def revoke(self, principal: object, *, grace: float | None = GRACE) -> int:
        """The credentials of a principal do not hold any more: part with all of its connections, at once.

        Further calls there are refused as Unauthenticated, and did not run; those whose handlers run may finish
        within `grace` seconds (None: however long they take). Pools dial again, and get in if `authenticate` lets
        them: so first take their credentials away from where that looks them up. Principals are the same if they are
        equal.

        Returns how many connections there were. Raises TypeError or ValueError for a grace that cannot be.
        """
        checked_grace(grace)
        self._reception.revoke(principal)
        found = [
            connection
            for connection in self._connections
            if not connection.expired and (connection.principal is principal or connection.principal == principal)
        ]
        for connection in found:
            self._partings.expire(connection, REVOKED, grace)
        return len(found)

    def _begin_drain(self) -> None:
        if not self._draining:
            self._draining = True
            self._accepting.stop()
            for connection in self._connections:
                connection.drain("the server is going away")

    async def _wait_quiet(self) -> None:
        with trio.move_on_after(SETTLE_TIME):  # Who is in the middle of a HELLO was let in, and may have calls to make.
            while self._room.strangers:
                await self._room.wait_change()
        for connection in list(self._connections):
            await connection.wait_quiet()
        await self._once.wait_quiet()

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(
        self, listeners: Sequence[AnyListener], addresses: Sequence[str], on_failure: trio.CancelScope
    ) -> None:
        """Serve until drained. Owned by `open_server` alone, whose block is cancelled if accepting has failed for good."""
        self.addresses = tuple(addresses)
        if listeners:
            self._room.most = most_connections(self.limits.max_connections)
            self._queue = AcceptQueue(listeners)
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    self._nursery = self._once.nursery = self._partings.nursery = nursery
                    nursery.start_soon(self._timer.run, name="trio_rpc server timer")
                    nursery.start_soon(self._accept_all, listeners, name="trio_rpc server listeners")
                    self._running.set()
                    await self._drained.wait()
                    await self._close_connections()
                    self._reception.conduct.end()
                    nursery.cancel_scope.cancel()
        finally:
            self._nursery = self._once.nursery = self._partings.nursery = None
            self._closed.set()
            if self._failure is not None:
                on_failure.cancel()

    async def shut_down(self) -> None:
        """End now: handlers are cancelled and joined, bounded."""
        if not self._closed.is_set():
            await self.drain(grace=0)

    async def _close_connections(self) -> None:
        for connection in list(self._connections):
            connection.finish()
        with trio.move_on_after(self.limits.close_timeout):
            while self._connections:
                await self._room.wait_change()

    async def _accept_all(self, listeners: Sequence[AnyListener]) -> None:
        self._failure = await self._accepting.run(listeners)
        if self._failure is not None:
            await self.drain()

    def _begin(self, stream: trio.abc.Stream, visit: Visit) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._attend, stream, visit, name="trio_rpc server connection")

    # -- one connection --------------------------------------------------------------------------------------------

    async def _attend(self, stream: trio.abc.Stream, visit: Visit) -> None:
        """Serve one connection to its end. Raises nothing of the peer's or a handler's."""
        address = peer_name(stream)
        if self._is_secured:
            address = address.replace("tcp://", "tls://", 1)
        connection: Connection | None = None
        stop_watching: Callable[[], None] | None = None
        try:
            with Contained(address):
                async with trio.open_nursery() as nursery:
                    connection = await self._reception.welcome(stream, address, nursery.cancel_scope, visit)
                    if connection is not None:
                        self._connections[connection] = None
                        stop_watching = self._partings.watch(connection)
                        if self._draining:
                            connection.drain("the server is going away")
                        await connection.run(nursery)
        finally:
            if stop_watching is not None:
                stop_watching()
            if connection is not None:
                self._connections.pop(connection, None)
            visit.end()

    async def attend_apart(self, stream: trio.abc.Stream) -> None:
        """Serve one stream, out of reach of the caller's cancellation, under which the handlers must be able to answer."""
        assert self._nursery is not None
        ended, visit = trio.Event(), self._room.enter()

        async def attend() -> None:
            try:
                await self._attend(stream, visit)
            finally:
                ended.set()

        self._nursery.start_soon(attend, name="trio_rpc server connection")
        await ended.wait()


@asynccontextmanager
async def keep_serving(
    server: Server, listeners: Sequence[AnyListener], addresses: Sequence[str]
) -> AsyncIterator[Server]:
    """Serve for the length of a block. If accepting fails for good, the block is cancelled, and what it failed of raised."""
    with trio.CancelScope() as scope:
        async with hidden_nursery() as nursery:
            # Not `start`: cancelled in between, it would wait for a server that waits for us.
            nursery.start_soon(server.run, listeners, addresses, scope)
            try:
                with trio.CancelScope(shield=True):  # For one scheduler tick.
                    await server._running.wait()
                await trio.lowlevel.checkpoint_if_cancelled()
                yield server
            finally:
                with trio.CancelScope(shield=True):  # Bounded by cancel_wait and close_timeout.
                    await server.shut_down()
    if server._failure is not None:
        raise server._failure
