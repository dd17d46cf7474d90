"""The hub of a pool: what its endpoints, its lines and its calls have to do with each other.

Ownership. Everything runs in one nursery (see `_keeper`): closing first stops new calls, cancels and joins those in
flight, and only then closes the streams, for which I/O must go on meanwhile. Where nothing is under way that is done at
once, in the step of whoever closes.

The way of a call: `pick` finds an endpoint (`_balancer`) and a connection there (`_upstream`), or `join` puts it into
a line (`_lines`), from which whoever has a free place starts it. It never waits between picking a connection and
owning a place on it. A place is free again when the terminal frame has come, not when somebody stopped waiting for it.
"""

from __future__ import annotations

import inspect
import logging
import random
import secrets
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

import attrs
import trio

from . import codecs
from ._balance import load_for
from ._balancer import Balancer
from ._breaker import Breaker
from ._budget import Budget
from ._caller import Caller
from ._config import Heartbeat, PoolLimits
from ._connection import Connection
from ._contract import describe_services
from ._credentials import checked, resolve
from ._dialler import Site
from ._dispatch import compile_services
from ._endpoint import Endpoint
from ._errors import ConnectError, PoolClosed, RpcError
from ._events import Events
from ._handshake import introduction
from ._keeper import Keeper
from ._lines import Lines
from ._logs import limited
from ._peer import Peer
from ._placement import Route, least_in_flight
from ._roster import Roster
from ._settings import PoolSettings, Prepare
from ._statistics import CallerCounters, ConnectionCounters, Connectivity, EventKind, LineCounters, PoolCounters
from ._timer import Timer
from ._upstream import Upstream, own_copy
from ._waiting import Attempt, WaitingLine
from .wire import Hello, Protocol

__all__ = ["Hub"]

log = limited(logging.getLogger("trio_rpc.pool"))


class Hub:
    """Everything of a pool but its public face. To its upstreams it is an `Owner`."""

    def __init__(
        self,
        target: str,
        sites: Sequence[Site],
        settings: PoolSettings,
        *,
        resolver: AsyncIterable[Any] | None = None,
        site_of: Callable[[Endpoint], Site] | None = None,
    ) -> None:
        codecs.get(settings.codec)  # LookupError, with the names there are, before anything is dialled.
        self.target: str = target
        self.settings: PoolSettings = settings
        self.limits: PoolLimits = settings.limits
        self.heartbeat: Heartbeat = settings.heartbeat
        self.instance: str = secrets.token_hex(8)
        self.rng: Callable[[], float] = random.random
        self.timer: Timer = Timer()
        self.pool_counters: PoolCounters = PoolCounters()
        self.caller_counters: CallerCounters = CallerCounters()
        self.line_counters: LineCounters = LineCounters()
        self.connection_counters: ConnectionCounters = ConnectionCounters()
        specs = describe_services(settings.services)
        self._service_names = tuple(spec.name for spec in specs)
        self._methods = compile_services(specs, settings.codec, settings.limits)
        self._credentials = checked(settings.credentials)
        self._base_context = copy_context()
        self._budget = Budget(settings.retry.budget, settings.retry.throttle)
        self._callers: weakref.WeakSet[Caller] = weakref.WeakSet()
        self.events: Events = Events()
        self.keeper: Keeper = Keeper(target, self._note_closed)
        self.roster: Roster = Roster(target, self._make_upstream, self._take_roster, self._note_unresolved, self.events)
        self.balancer: Balancer = Balancer(
            settings.balance, settings.ejection, self.timer, self.draw, self._note_health
        )
        self.lines: Lines = Lines(self.roster, self.balancer, self._make_line)
        self._line = self.lines.common
        self._plain: list[Connection] | None = None
        """The connections, where there is one endpoint and nothing to be asked before a call goes there."""
        self._state = Connectivity.IDLE
        self._filling = self.limits.autostart
        self._draining = False
        self._over: RpcError | None = None
        self._resolver, self._site_of = resolver, site_of
        self._resolving = trio.CancelScope(shield=True)
        self.changes: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()
        """Where those park who wait for some state."""
        self.roster.replace(sites)

    def _make_line(self, why: Callable[[], tuple[str, BaseException | None]]) -> WaitingLine:
        limits = self.limits
        return WaitingLine(
            self.timer,
            why,
            max_waiting=limits.max_waiting,
            acquire_timeout=limits.acquire_timeout,
            priorities=limits.priorities,
            counters=self.line_counters,
            left=self._note_progress,
        )

    def make_caller(
        self,
        describe: Callable[[], str],
        pick: Callable[[Route | None], Connection | None],
        join: Callable[[Attempt], object],
    ) -> Caller:
        """What makes calls that go where `pick` and `join` say."""
        settings = self.settings
        caller = Caller(
            describe=describe,
            pick=pick,
            join=join,
            codec=settings.codec,
            timer=self.timer,
            retry=settings.retry,
            hedge=settings.hedge,
            limits=self.limits,
            acquire_timeout=self.limits.acquire_timeout,
            metadata=settings.metadata,
            interceptors=settings.interceptors,
            rng=self.draw,
            counters=self.caller_counters,
            budget=self._budget,
            resumed=self._note_resumed,
        )
        self._callers.add(caller)
        return caller

    def draw(self) -> float:
        """A random number in [0, 1)."""
        return self.rng()

    # -- life ------------------------------------------------------------------------------------------------------

    def begin(self, nursery: trio.Nursery) -> None:
        """Keep everything in this nursery, until `close_soon`."""
        self.keeper.begin(nursery)
        self.start(partial(self.timer.run, shield=True), "timer")
        if self._resolver is not None:
            self.start(self._follow_resolver, "resolver")
        self._dial_what_is_wanted()

    @trio.lowlevel.enable_ki_protection
    def close_soon(self) -> None:
        """Begin to close; `keeper.closed` is set at the end. Idempotent."""
        if self.keeper.closing:
            return
        self.keeper.closing = True
        self._refresh()
        self._turn_away()
        self._resolving.cancel()
        for upstream in self.roster.all:
            upstream.dialler.cancel()
        if any(connection.busy for connection in self._in_use):
            for upstream in self.roster.all:
                for connection in list(upstream.connections):
                    connection.drain("the pool is closing")
            self.start(self._wind_up, "end")
        else:
            self._close_connections()

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
        self.timer.stop()
        for upstream in self.roster.all:
            upstream.close()

    def _turn_away(self) -> None:
        """Tell all that wait for a connection or a place that the pool is closed."""
        self.lines.fail_all(self._closed_error)
        for caller in list(self._callers):
            for stream in list(caller.restarting):
                stream.begin_anew()  # There is no call that could be stopped: it learns that the pool is closed.
        self.changes.unpark_all()

    def _note_closed(self) -> None:
        self._note_state()
        self.events.end()

    @property
    def _in_use(self) -> list[Connection]:
        return [connection for upstream in self.roster.all for connection in upstream.in_use]

    def _longest_wait(self) -> float:
        """Calls bound their own joins; this bounds the wait for handlers here that ignore their cancellation."""
        waits = [call.cancel_wait for connection in self._in_use for call in connection.calls.values()]
        return max(waits, default=0.0) + self.limits.cancel_wait

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(f"the pool of {self.target} is closed")

    # -- the set of endpoints --------------------------------------------------------------------------------------

    @property
    def upstreams(self) -> list[Upstream]:
        """Those of the endpoints of the moment, in order."""
        return list(self.roster.upstreams.values())

    async def _follow_resolver(self) -> None:
        assert self._resolver is not None
        assert self._site_of is not None
        try:
            with self._resolving:
                await self.roster.follow(self._resolver, self._site_of, self.limits.connect_backoff, self.draw)
        except Exception:  # A group, of what ran in it when the pool closed.
            log.warning("the resolver of %s failed while it was ended", self.target, exc_info=True)

    def _take_roster(self) -> None:
        """The set of endpoints is another one."""
        self.balancer.replace(self.upstreams)
        for upstream in self.upstreams:
            for connection in upstream.connections:
                self._watch(upstream, connection)
        self._refresh()
        self._admit_ejected()
        if self.keeper.began:
            self._dial_what_is_wanted()

    def _note_unresolved(self) -> None:
        """The resolver has failed, or what it gave cannot be."""
        self._note_state()
        self.lines.fail_hopeless()
        self.changes.unpark_all()

    def _make_upstream(self, site: Site) -> Upstream:
        settings = self.settings
        breaker = Breaker(settings.breaker, self.draw) if settings.breaker is not None else None
        return Upstream(site, self, load=load_for(settings.balance), breaker=breaker, redial=settings.redial)

    def start_filling(self) -> None:
        """Dial, if that was to wait until there is a call."""
        if not self._filling:
            self._filling = True
            self._dial_what_is_wanted()

    def _dial_what_is_wanted(self) -> None:
        if self._filling and self._over is None:
            for upstream in self.upstreams:
                upstream.dial_what_is_wanted()

    @property
    def state(self) -> Connectivity:
        """The best of the endpoints' states."""
        if self.keeper.closing:
            return Connectivity.SHUTDOWN
        return self.roster.state

    def _note_state(self) -> None:
        state = self.state
        if state is not self._state:
            self._state = state
            self.events.tell("state", None, state.value)

    # -- what an upstream needs: an Owner --------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """True once no further connection is wanted."""
        return self.keeper.closing or self._over is not None

    @property
    def health_check(self) -> str | None:
        """The service whose health decides whether a connection takes calls."""
        return self.settings.health_check

    def start(self, function: Callable[[], Awaitable[object]], what: str) -> None:
        """Start a task of long life."""
        self.keeper.start(function, what)

    def make_connection(self, stream: trio.abc.Stream, protocol: Protocol, address: str) -> Connection:
        """A connection with what all of the pool's have in common."""
        connection = Connection(
            stream,
            protocol,
            limits=self.limits,
            heartbeat=self.heartbeat,
            timer=self.timer,
            methods=self._methods,
            base_context=self._base_context,
            counters=self.connection_counters,
            address=address,
        )
        connection.make_peer = self._make_peer
        return connection

    def _make_peer(self, connection: Connection) -> Peer:
        return Peer(connection, codec=self.settings.codec, timer=self.timer, limits=self.limits)

    async def hello(self) -> Hello:
        """What this side says of itself, credentials included."""
        hello = introduction(self.settings.codec, self.limits, self.heartbeat, self._service_names, self.instance)
        if self._credentials is None:
            return hello
        return attrs.evolve(hello, credentials=await resolve(self._credentials))

    def opened(self, upstream: Upstream, connection: Connection) -> Callable[[], Awaitable[object]] | None:
        """A HELLO has come. What has to be done before calls go there, if anything."""
        self._watch(upstream, connection)
        on_connect = self.settings.on_connect
        return None if on_connect is None else partial(_prepare, on_connect, connection.peer)

    def _watch(self, upstream: Upstream, connection: Connection) -> None:
        """Learn what becomes of calls there, if that matters to anybody."""
        if self.balancer.observes:
            connection.observe = partial(self.balancer.observe, upstream)
        if upstream.breaker is not None:
            connection.begun = partial(self._note_begun, upstream, upstream.breaker)

    def _note_begun(self, upstream: Upstream, breaker: Breaker, connection: Connection, now: float) -> None:
        """A call begins there. Where none of the callers' may, it is our own: no probe, as it may go on for ever."""
        if connection not in upstream.vetting.held:
            self.balancer.began(upstream, breaker, now)

    def waiting_for(self, upstream: Upstream) -> int:
        """How many wait in line whom a connection there could serve."""
        return self.lines.waiting_for(upstream)

    def admit(self, upstream: Upstream, connection: Connection) -> None:
        """Fill the free places of a connection from the line."""
        self.lines.admit(upstream, connection)
        self._note_progress()

    def _note_progress(self) -> None:
        """One call less is in line, or may be under way."""
        if self._draining:
            self.changes.unpark_all()

    def admit_early(self, upstream: Upstream, connection: Connection, until: float) -> bool:
        """Start one call on a connection that has not heard HELLO yet. False: there is none that may be."""
        vetted = self.settings.on_connect is not None or self.settings.health_check is not None
        if vetted or not self.lines.admit_early(upstream, connection, until):
            return False
        self._watch(upstream, connection)
        return True

    def note(self, kind: EventKind, upstream: Upstream, detail: str = "", error: BaseException | None = None) -> None:
        """Something has happened that those who watch may want to know."""
        self.events.tell(kind, upstream.name, detail, error)
        if kind in ("connect_failed", "lost"):
            self._refresh_resolver()

    def _refresh_resolver(self) -> None:
        refresh = getattr(self._resolver, "refresh", None)
        if refresh is not None:
            try:
                refresh()
            except BaseException as exc:  # It is the user's, and we are in the middle of a connection's end.
                if isinstance(exc, KeyboardInterrupt):
                    raise
                log.warning("the resolver of %s cannot be refreshed", self.target, exc_info=True)

    def _note_health(self, kind: EventKind, upstream: Upstream, detail: str) -> None:
        """An endpoint was ejected or restored, or its circuit is another one."""
        self.events.tell(kind, upstream.name, detail)
        self.lines.admit_all()
        self.lines.note_circuits()
        upstream.dial_what_is_wanted()  # Which it was not while it declined calls.

    def changed(self, upstream: Upstream) -> None:
        """Its connections or its hopes are others now."""
        self.roster.note(upstream)
        self.balancer.reopen()
        self._refresh()
        self._note_state()
        self.lines.fail_hopeless(upstream)
        self._admit_ejected()
        self.changes.unpark_all()

    def _admit_ejected(self) -> None:
        """Who is left out may be all there is by now."""
        if self.balancer.ejecting:
            self.lines.admit_all()

    def over(self, cause: BaseException | None) -> None:
        """The one stream there was takes no more calls: nobody need wait for another."""
        if self._over is None:
            self._over = ConnectError("the one stream of this connection has ended", peer=self.target, permanent=True)
            self._over.__cause__ = cause
            self._refresh()
            self.lines.fail_all(self._over_error)

    def _over_error(self) -> RpcError:
        assert self._over is not None
        return own_copy(self._over)

    # -- what is asked of the pool ---------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    def resize(self, limits: PoolLimits) -> None:
        """Let these be the limits; what they say of one connection holds for new ones."""
        self.limits = limits
        for upstream in self.upstreams:
            upstream.trim()
        self._dial_what_is_wanted()

    @trio.lowlevel.enable_ki_protection
    def recycle(self) -> None:
        """Replace every connection; a back-off under way does not count."""
        for upstream in self.upstreams:
            for connection in list(upstream.connections):
                upstream.retire(connection, "recycle")
            upstream.dialler.hurry()
        self._dial_what_is_wanted()

    async def check(self) -> None:
        """Test every connection, and wait until it is known of each whether it lives."""
        asked = [(upstream.vetting, connection) for upstream in self.upstreams for connection in upstream.connections]
        for vetting, connection in asked:
            vetting.test(connection)
        self._dial_what_is_wanted()
        await trio.lowlevel.checkpoint()
        while not self.closing and any(vetting.tests(connection) for vetting, connection in asked):
            await self.changes.park()

    def suspend(self) -> None:
        """Begin no further calls."""
        self.check_open()
        self.lines.suspend()
        self._refresh()

    @trio.lowlevel.enable_ki_protection
    def resume(self) -> None:
        """Begin calls again."""
        self.lines.resume()
        self._refresh()

    async def drain(self) -> None:
        """Turn new calls away, and wait until those that wait or are under way have ended."""
        self._draining = True
        self._refresh()
        while True:
            if self._has_calls():
                await self.changes.park()
            elif any(caller.under_way for caller in self._callers):
                # One that has ended, and whose task has been woken and will run now: it may go on to another attempt.
                await trio.lowlevel.checkpoint()
            else:
                return

    def _has_calls(self) -> bool:
        return (
            len(self.lines) > 0
            or any(caller.between_attempts for caller in self._callers)
            or any(any(map(upstream.busy, upstream.in_use)) for upstream in self.roster.all)
        )

    def _note_resumed(self) -> None:
        if self._draining:
            self.changes.unpark_all()

    # -- what the callers ask --------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Find out whether a call needs no more than a look at one list of connections."""
        self._plain = None
        if self.closing or self._draining or self.lines.suspended:
            return
        if len(self.roster.upstreams) == 1:
            (upstream,) = self.upstreams
            if upstream.is_plain:
                self._plain = upstream.connections

    def pick(self, route: Route | None) -> Connection | None:
        """A connection with a free place for one who has not waited, or None. Raises PoolClosed, ConnectError."""
        plain = self._plain
        if plain is None or route is not None:
            return self._pick_among(route)
        if self._line.count:
            return None
        if len(plain) == 1:
            return plain[0] if plain[0].free > 0 else None
        return least_in_flight(plain, self.rng)

    def _pick_among(self, route: Route | None) -> Connection | None:
        self.check_open(route)
        if route is not None and route.home is not None:
            return self.pick_at(self._at_home(route), route)
        if self._line.count or self.lines.suspended:
            return None
        return self.balancer.pick(route)

    def pick_at(self, upstream: Upstream, route: Route | None = None) -> Connection | None:
        """The same, at this endpoint and nowhere else."""
        self.check_open(route)
        if upstream.leaving:
            raise self.lines.gone(upstream.name)
        if upstream.line or self.lines.suspended:
            return None
        return upstream.pick()

    def _at_home(self, route: Route) -> Upstream:
        assert route.home is not None
        upstream = self.roster.upstreams.get(route.home)
        if upstream is None:
            raise self.lines.gone(route.home)
        return upstream

    @trio.lowlevel.enable_ki_protection  # Else a Ctrl-C might leave somebody in line who is not there any more.
    def join(self, attempt: Attempt) -> None:
        """Put it into a line. Raises PoolExhausted, CircuitOpen, ConnectError."""
        route = attempt.route
        if route is not None and route.home is not None:
            self.join_at(self._at_home(route), attempt)
            return
        self.start_filling()
        self.lines.join(attempt)
        if self._line.count == 1:
            # The others have asked for it, and each dial that ends looks whether they still wait.
            self._dial_what_is_wanted()
        self.lines.doubt(attempt)

    @trio.lowlevel.enable_ki_protection
    def join_at(self, upstream: Upstream, attempt: Attempt) -> None:
        """The same, at this endpoint and nowhere else."""
        self.lines.join_at(upstream, attempt)
        upstream.dial_what_is_wanted()
        self.lines.doubt(attempt, upstream)

    def check_open(self, route: Route | None = None) -> None:
        """Raise what a call gets that comes too late. To drain, one that goes on after a first attempt has come before."""
        if self.keeper.closing:
            raise self._closed_error()
        if self._draining and not (route is not None and route.avoid):
            raise PoolClosed(f"the pool of {self.target} is draining")
        if self._over is not None:
            raise self._over_error()


async def _prepare(on_connect: Prepare, peer: Peer) -> None:
    waiting: Any = on_connect(peer)
    if not inspect.isawaitable(waiting):
        text = (
            f"on_connect must be an async function: {on_connect!r:.80} returned {waiting!r:.80}, and nothing to await"
        )
        raise ConnectError(text, peer=peer.address, permanent=True)
    await waiting
