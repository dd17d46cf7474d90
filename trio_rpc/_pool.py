"""The pool: connections to one target, kept by a nursery of their own.

Ownership. Everything here runs in one nursery, in tasks that each shield themselves in their first step and end only
after `close_soon`: outside cancellation first stops new calls, cancels and joins those in flight, and only then closes
the streams, for which I/O must go on meanwhile. Where nothing is under way that is done at once, in the step of whoever
closes. Callers never dial: a cancelled caller leaves nothing half open. Each connection is one task, from dialling to
its end, in a nursery of its own whose scope bounds the dial first, and the goodbye at last.

A call never waits between picking a connection and owning a place on it (see `_waiting`). A place is free again when
the terminal frame has come, not when somebody stopped waiting for it.
"""

from __future__ import annotations

import copy
import logging
import math
import random
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from functools import partial

import attrs
import trio

from . import codecs
from ._backoff import delay_before
from ._call import Interceptor
from ._caller import Caller
from ._config import Heartbeat, PoolLimits, RetryPolicy
from ._connection import Connection, Contained
from ._contract import describe_services
from ._credentials import Credentials, checked, resolve
from ._dispatch import compile_services
from ._errors import ConnectError, PoolClosed, RpcError, Unauthenticated
from ._handshake import greet, introduction
from ._peer import Peer
from ._placement import Route, dials_wanted, least_in_flight
from ._scope import hidden_nursery
from ._statistics import ConnectionCounters, PoolCounters, PoolStatistics
from ._target import Target
from ._timer import Timer
from ._waiting import WaitingLine
from .wire import Hello, Metadata, Protocol, Role

__all__ = ["Dial", "Pool", "keep_open"]

log = logging.getLogger("trio_rpc.pool")

LIFETIME_JITTER = 0.05
"""Connections of one start do not all end together (psycopg_pool: up to 5 % earlier)."""

Dial = Callable[[], Awaitable[trio.abc.Stream]]


class Pool(Target):
    """Connections to one target, multiplexed, kept alive and replaced. Made by `open_pool` and `run_pool`."""

    def __init__(
        self,
        target: str,
        dial_target: Dial,
        *,
        codec: str = "msgpack",
        limits: PoolLimits,
        heartbeat: Heartbeat,
        retry: RetryPolicy,
        credentials: Credentials = None,
        metadata: Metadata | None = None,
        services: object = (),
        interceptors: Sequence[Interceptor] = (),
        rng: Callable[[], float] = random.random,
        redial: bool = True,
    ) -> None:
        self._timer = Timer()
        self._line = WaitingLine(self._timer, limits.max_waiting, self._why_waiting)
        super().__init__(
            Caller(
                describe=self.__repr__,
                pick=self._pick,
                wanted=self._wanted,
                codec=codec,
                timer=self._timer,
                line=self._line,
                retry=retry,
                limits=limits,
                acquire_timeout=limits.acquire_timeout,
                metadata=metadata,
                interceptors=interceptors,
                rng=self._draw,
            )
        )
        self.target = target
        self.codec = codec
        self.rng = rng
        self.limits = limits
        self.heartbeat = heartbeat
        codecs.get(codec)  # LookupError, with the names there are, before anything is dialled.
        specs = describe_services(services) if services else []
        self._service_names = tuple(spec.name for spec in specs)
        self._methods = compile_services(specs, codec)
        self._dial_target = dial_target
        self._credentials = checked(credentials)
        self._base_context = copy_context()
        self._connection_counters = ConnectionCounters()
        self._pool_counters = PoolCounters()
        self._ready: list[Connection] = []
        self._closing_connections: set[Connection] = set()
        self._redial = redial
        self._over: RpcError | None = None
        self._dialling = self._failures = self._tasks = 0
        self._dials: dict[trio.CancelScope, Connection | None] = {}  # Under way; a connection that has a call already.
        self._next_dial_at = -math.inf
        self._last_error: BaseException | None = None
        self._nursery: trio.Nursery | None = None
        self._closing = False
        self._closed = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()

    def _draw(self) -> float:
        return self.rng()

    def __repr__(self) -> str:
        stats = self.statistics()
        state = "closed" if self._closed.is_set() else "closing" if self._closing else "open"
        return (
            f"<Pool {self.target} ({state}): {stats.busy} busy, {stats.idle} idle, {stats.dialling} dialling "
            f"of {self.limits.max_connections}; {stats.in_flight} calls in flight, {stats.waiting} waiting>"
        )

    def statistics(self) -> PoolStatistics:
        """A snapshot; cheap."""
        line, counters, connections = self._line.counters, self._caller.counters, self._connection_counters
        busy = sum(1 for connection in self._ready if connection.calls)
        return PoolStatistics(
            connections=len(self._ready),
            idle=len(self._ready) - busy,
            busy=busy,
            dialling=self._dialling,
            min_connections=self.limits.min_connections,
            max_connections=self.limits.max_connections,
            in_flight=sum(connection.in_flight for connection in self._in_use),
            spare=sum(max(0, connection.free) for connection in self._ready),
            waiting=len(self._line),
            orphans=connections.orphans,
            serving=sum(len(connection.serving) for connection in self._ready),
            requests=counters.requests,
            queued=line.queued,
            wait_seconds=line.wait_seconds,
            usage_seconds=connections.usage_seconds,
            errors=counters.errors,
            retries=counters.retries,
            timeouts=line.timeouts,
            exhausted=line.exhausted,
            late_replies=connections.late_replies,
            evicted=connections.evicted,
            **attrs.asdict(self._pool_counters),
        )

    async def aclose(self) -> None:
        """Close the pool, from any task; returns when everything is gone. Idempotent.

        Calls in flight are cancelled and joined, each bounded by its `cancel_wait`; they, and calls that wait for a
        place, raise PoolClosed with their own `may_have_run`.
        """
        self.close_soon()
        # Bounded by cancel_wait and close_timeout. A task that the closing has to end must not wait for it shielded.
        with trio.CancelScope(shield=not self._owns(trio.lowlevel.current_task())):
            await self._closed.wait()
        await trio.lowlevel.checkpoint_if_cancelled()

    @trio.lowlevel.enable_ki_protection
    def close_soon(self) -> None:
        """Begin to close; `_closed` is set at the end. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._turn_away()
        for dial, connection in self._dials.items():
            if connection is None:
                dial.cancel()
        if any(connection.busy for connection in self._in_use):
            for connection in list(self._ready):
                connection.drain("the pool is closing")
            self._start(self._wind_up, "end")
        else:
            self._close_connections()

    @property
    def _in_use(self) -> list[Connection]:
        """Connections that calls may be on: those that are ready, and those whose first call went with the HELLO."""
        return [*self._ready, *(connection for connection in self._dials.values() if connection is not None)]

    def _owns(self, task: trio.lowlevel.Task) -> bool:
        """True for a task that runs in the pool: a handler that the peer calls back, a function that dials."""
        nursery = task.parent_nursery
        while nursery is not None and nursery is not self._nursery:
            nursery = nursery.parent_task.parent_nursery
        return nursery is not None

    async def connect(self) -> None:
        """Wait for one connection, dialling if there is none. Raises the error of that dial."""
        while not any(connection.usable for connection in self._ready):
            self._check_open()
            if not self._dialling:
                self._dial()
            errors = self._pool_counters.connect_errors
            await self._changed.park()
            if self._pool_counters.connect_errors > errors and isinstance(self._last_error, RpcError):
                raise _copy(self._last_error)

    async def wait_connected(self, connections: int = 1) -> None:
        """Wait until so many connections are ready. Raises PoolClosed if the pool closes before."""
        while sum(connection.usable for connection in self._ready) < connections:
            self._check_open()
            await self._changed.park()

    # -- life ------------------------------------------------------------------------------------------------------

    def begin(self, nursery: trio.Nursery) -> None:
        """Keep the pool in this nursery until `close_soon`. Called by `keep_open` alone."""
        self._nursery = nursery
        self._start(partial(self._timer.run, shield=True), "timer")
        self._dial_what_is_wanted()

    def _start(self, function: Callable[[], Awaitable[object]], what: str) -> None:
        """Start a task of long life, in a clean context and not in that of whoever happened to call first.

        It shields itself, before its first checkpoint.
        """
        assert self._nursery is not None
        self._tasks += 1
        start, name = self._nursery.start_soon, f"trio_rpc pool {what} {self.target}"
        Context().run(lambda: start(self._keep, function, name=name))

    async def _keep(self, function: Callable[[], Awaitable[object]]) -> None:
        try:
            await function()
        finally:
            self._tasks -= 1
            if self._closing and not self._tasks:
                self._closed.set()

    @trio.lowlevel.enable_ki_protection
    async def _wind_up(self) -> None:
        """Stop what is under way and wait for its end; each wait here is bounded by a timer of the call itself."""
        try:
            with trio.CancelScope(shield=True):
                for connection in self._in_use:
                    for call in list(connection.calls.values()):
                        call.close(PoolClosed(f"the pool of {self.target} was closed"))
                    connection.stop_serving("the caller's pool is closing")
                with trio.move_on_after(self._longest_wait()):
                    for connection in self._in_use:
                        await connection.wait_quiet()
        finally:
            self._close_connections()

    def _close_connections(self) -> None:
        """The end: within `close_timeout`, every task of the pool ends by itself."""
        self._timer.stop()
        for dial in self._dials:
            dial.cancel()
        for connection in list(self._ready):
            connection.finish()

    def _turn_away(self) -> None:
        """Tell all that wait for a connection or a place that the pool is closed."""
        self._line.fail_all(self._closed_error)
        for stream in list(self._caller.restarting):
            stream.begin_anew()  # There is no call that could be stopped: it learns that the pool is closed.
        self._changed.unpark_all()

    def _longest_wait(self) -> float:
        """Calls bound their own joins; this bounds the wait for handlers here that ignore their cancellation."""
        waits = [call.cancel_wait for connection in self._in_use for call in connection.calls.values()]
        return max(waits, default=0.0) + self.limits.cancel_wait

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(f"the pool of {self.target} is closed")

    # -- dialling --------------------------------------------------------------------------------------------------

    def _dial_what_is_wanted(self) -> None:
        if self._closing or self._over is not None or self._dialling >= max(1, self.limits.min_connections):
            return
        wanted = dials_wanted(
            ready=sum(connection.usable for connection in self._ready),
            dialling=self._dialling,
            waiting=len(self._line),
            least=self.limits.min_connections,
            most=self.limits.max_connections,
            failing=self._failures > 0,
        )
        for _ in range(wanted):
            self._dial()

    def _dial(self) -> None:
        self._dialling += 1
        self._start(self._keep_connection, "connection")

    async def _keep_connection(self) -> None:
        """One connection, from dialling to its end, in a nursery of its own."""
        with Contained(self.target):
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.shield = True
                connection = await self._connect(nursery.cancel_scope)
                if connection is not None:
                    await connection.run(nursery, on_open=partial(self._note_open, connection))

    async def _connect(self, scope: trio.CancelScope) -> Connection | None:
        """Wait for the back-off, then dial and greet, within `connect_timeout`, which `scope` holds meanwhile.

        None, or Cancelled: it came to nothing.
        """
        started_at, failures = trio.current_time(), self._failures
        self._dials[scope] = None
        if self._closing:  # Since before the first step of this task.
            scope.cancel()
        try:
            if self._next_dial_at > started_at:
                await trio.sleep_until(self._next_dial_at)
                started_at, failures = trio.current_time(), self._failures
            self._pool_counters.connects += 1
            if self.limits.connect_timeout is not None:
                scope.deadline = started_at + self.limits.connect_timeout
            connection = await self._dial_and_greet(scope)
            scope.deadline = math.inf
            self._pool_counters.connect_seconds += trio.current_time() - started_at
            return connection
        except trio.Cancelled:
            if not self._closing:
                text = f"{self.target} did not answer within {self.limits.connect_timeout:g} s (connect_timeout)"
                self._note_dial_failure(ConnectError(text, peer=self.target), started_at, failures)
            raise
        except Exception as exc:
            self._note_dial_failure(exc, started_at, failures)
        finally:
            del self._dials[scope]
            self._dialling -= 1
        return None

    async def _dial_and_greet(self, scope: trio.CancelScope) -> Connection:
        stream = await self._dial_target()
        connection: Connection | None = None
        try:
            protocol = Protocol(Role.DIALLER, await self._hello())
            connection = self._make_connection(stream, protocol)
            if self._line.admit_early(connection, scope.deadline):
                self._dials[scope] = connection
            connection.meet(await greet(stream, protocol, self.target, connection.outbox.take_first()))
            if scope.cancel_called:  # In the very last moment: the scope is no good any more.
                await trio.lowlevel.checkpoint()
        except BaseException as exc:
            if connection is not None:
                connection.miss(exc)
            await trio.aclose_forcefully(stream)
            raise
        connection.room_watchers.append(self._on_room)
        return connection

    def _delay_next_dial(self, started_at: float) -> None:
        """Keep the back-off's distance, start to start, from a dial that came to nothing."""
        delay = delay_before(max(2, self._failures + 1), self.limits.connect_backoff, self.rng)
        self._next_dial_at = max(self._next_dial_at, started_at + delay)

    def _make_connection(self, stream: trio.abc.Stream, protocol: Protocol) -> Connection:
        connection = Connection(
            stream,
            protocol,
            limits=self.limits,
            heartbeat=self.heartbeat,
            timer=self._timer,
            methods=self._methods,
            base_context=self._base_context,
            counters=self._connection_counters,
            address=self.target,
        )
        connection.make_peer = self._make_peer
        return connection

    def _make_peer(self, connection: Connection) -> Peer:
        return Peer(connection, codec=self.codec, timer=self._timer, limits=self.limits)

    async def _hello(self) -> Hello:
        hello = introduction(self.codec, self.limits, self.heartbeat, self._service_names)
        if self._credentials is None:
            return hello
        return attrs.evolve(hello, credentials=await resolve(self._credentials))

    def _note_dial_failure(self, error: Exception, started_at: float, failures: int) -> None:
        self._failures = max(self._failures, failures + 1)  # Dials that fail side by side count as one.
        self._delay_next_dial(started_at)
        if not isinstance(error, RpcError):  # Of the user's own: a function that opens streams, or gives credentials.
            cause, error = error, ConnectError(f"cannot connect to {self.target}: {error!r}", peer=self.target)
            error.__cause__ = cause
        error.may_have_run = False  # The call that went with the HELLO knows better; this is told to others.
        self._pool_counters.connect_errors += 1
        self._last_error = error
        self._changed.unpark_all()
        log.info("%s", error)
        self._tell_the_hopeless()
        self._timer.at(trio.current_time(), lambda _late: self._dial_what_is_wanted())

    def _tell_the_hopeless(self) -> None:
        """Nothing that waits here can mend a permanent error: tell it now, and not after `acquire_timeout`."""
        error = self._last_error
        permanent = isinstance(error, Unauthenticated) or (isinstance(error, ConnectError) and error.permanent)
        if isinstance(error, RpcError) and permanent and not any(connection.usable for connection in self._ready):
            self._line.fail_impatient(lambda: _copy(error))

    def _note_open(self, connection: Connection) -> None:
        self._failures = 0
        self._last_error = None
        self._ready.append(connection)
        now = connection.opened_at
        if self.limits.max_lifetime is not None:
            lifetime = self.limits.max_lifetime * (1 - LIFETIME_JITTER * self.rng())
            self._timer.at(now + lifetime, self._unless_gone(connection, self._retire))
        if self.limits.idle_timeout is not None:
            self._timer.at(now + self.limits.idle_timeout, self._unless_gone(connection, self._watch_idle))
        self._changed.unpark_all()
        self._line.admit(connection)
        self._dial_what_is_wanted()

    def _note_end(self, connection: Connection) -> None:
        if connection not in self._ready:
            return
        self._ready.remove(connection)
        if connection not in self._closing_connections:
            self._pool_counters.lost += not self._closing
            self._last_error = connection.cause
        self._closing_connections.discard(connection)
        self._changed.unpark_all()

    # -- keeping ---------------------------------------------------------------------------------------------------

    def _unless_gone(self, connection: Connection, action: Callable[[Connection], object]) -> Callable[[float], object]:
        """For the timer, which remembers for an hour what a lost connection was to do: it must not keep it alive."""
        reference = weakref.ref(connection)

        def act(_lateness: float) -> None:
            connection = reference()
            if connection is not None:
                action(connection)

        return act

    def _retire(self, connection: Connection) -> None:
        if connection.usable:
            self._pool_counters.closed_age += 1
            self._closing_connections.add(connection)
            connection.retire()

    def _watch_idle(self, connection: Connection) -> None:
        assert self.limits.idle_timeout is not None
        if not connection.usable:
            return
        now = trio.current_time()
        due = (now if connection.busy else connection.used_at) + self.limits.idle_timeout
        if due > now:
            self._timer.at(due, self._unless_gone(connection, self._watch_idle))
        elif sum(other.usable for other in self._ready) > self.limits.min_connections:
            self._pool_counters.closed_idle += 1
            self._closing_connections.add(connection)
            connection.retire()
        else:
            self._timer.at(now + self.limits.idle_timeout, self._unless_gone(connection, self._watch_idle))

    def _on_room(self, connection: Connection) -> None:
        """A call has left its place, or the connection's state has changed."""
        if not (connection.going_away or connection.closed):
            if self._line.attempts:
                self._line.admit(connection)
            return
        if self._closing:
            if connection.closed:
                self._note_end(connection)
            return
        if connection not in self._closing_connections:
            # The peer's wish: one that lets us in only to send us away again must not make us spin.
            self._delay_next_dial(connection.opened_at)
        if connection.closed:
            self._note_end(connection)
        elif not connection.busy and not connection.saying_goodbye:
            self._say_goodbye(connection)
        if not self._redial:
            self._note_over(connection)
        self._dial_what_is_wanted()

    def _say_goodbye(self, connection: Connection) -> None:
        if connection not in self._closing_connections:
            self._pool_counters.closed_going_away += 1
            self._closing_connections.add(connection)
        connection.finish()

    def _note_over(self, connection: Connection) -> None:
        """The one stream there was takes no more calls: nobody need wait for another."""
        if self._over is None:
            self._over = ConnectError("the one stream of this connection has ended", peer=self.target, permanent=True)
            self._over.__cause__ = connection.cause
            self._line.fail_all(self._over_error)

    def _over_error(self) -> RpcError:
        assert self._over is not None
        return _copy(self._over)

    # -- what the caller asks --------------------------------------------------------------------------------------

    def _pick(self, _route: Route | None) -> Connection | None:
        if self._closing or self._over is not None:
            self._check_open()
        if self._line.attempts:
            return None
        ready = self._ready
        if len(ready) == 1:
            return ready[0] if ready[0].free > 0 else None
        return least_in_flight(ready, self.rng)

    def _wanted(self) -> None:
        self._dial_what_is_wanted()
        if trio.current_time() < self._next_dial_at:
            self._tell_the_hopeless()

    def _check_open(self) -> None:
        if self._closing:
            raise self._closed_error()
        if self._over is not None:
            raise self._over_error()

    def _why_waiting(self) -> tuple[str, BaseException | None]:
        usable = sum(connection.usable for connection in self._ready)
        if usable:
            return f"all places of {usable} connections to {self.target} are taken", self._last_error
        reason = f"no connection to {self.target}" if self._last_error is None else str(self._last_error)
        return reason, self._last_error


def _copy(error: RpcError) -> RpcError:
    """Each call gets an exception object of its own, with one common cause."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own


@asynccontextmanager
@trio.lowlevel.enable_ki_protection  # Here, and not in the block: a pool that has begun is closed in any case.
async def keep_open(make: Callable[[], Pool]) -> AsyncIterator[Pool]:
    """Make a pool and run it, for the length of a block."""
    pool = make()
    async with hidden_nursery(cancel=False) as nursery:
        try:
            pool.begin(nursery)
            await trio.lowlevel.checkpoint_if_cancelled()
            yield pool
        finally:
            pool.close_soon()  # The nursery waits for its end.
