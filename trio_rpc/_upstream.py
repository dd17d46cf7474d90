"""An upstream: a pool's connections to one endpoint, from the first call that goes there to the last.

They are opened by its `Dialler`, and held back where there is reason by its `Vetting`. What concerns more than this one
endpoint is the pool's, which is known here by the few verbs of `Owner`.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol as Interface

import trio

from ._balance import Load, ramp
from ._breaker import Breaker
from ._config import Heartbeat, PoolLimits
from ._connection import Connection
from ._dialler import Dialler, Site
from ._ejection import Tally
from ._errors import RpcError
from ._placement import dials_wanted, least_in_flight, oldest_first
from ._statistics import Connectivity, EventKind, PoolCounters
from ._text import shown
from ._timer import Timer
from ._vetting import Vetting
from ._waiting import WaitingLine
from .wire import Hello, Protocol

__all__ = ["Owner", "Upstream", "own_copy"]

LIFETIME_JITTER = 0.05
"""Connections of one start do not all end together (psycopg_pool: up to 5 % earlier)."""


class Owner(Interface):
    """What an upstream needs of its pool."""

    limits: PoolLimits
    heartbeat: Heartbeat
    timer: Timer
    pool_counters: PoolCounters

    @property
    def closing(self) -> bool:
        """True once no further connection is wanted."""
        ...

    def draw(self) -> float:
        """A random number in [0, 1)."""
        ...

    def start(self, function: Callable[[], Awaitable[object]], what: str) -> None:
        """Start a task of long life."""

    def make_connection(self, stream: trio.abc.Stream, protocol: Protocol, address: str) -> Connection:
        """A connection with what all of the pool's have in common."""
        ...

    async def hello(self) -> Hello:
        """What this side says of itself, credentials included."""
        ...

    def waiting_for(self, upstream: Upstream) -> int:
        """How many wait in line whom a connection here could serve."""
        ...

    def admit(self, upstream: Upstream, connection: Connection) -> None:
        """Fill the free places of a connection from the line."""

    def admit_early(self, upstream: Upstream, connection: Connection, until: float) -> bool:
        """Start one call on a connection that has not heard HELLO yet. False: there is none that may be."""
        ...

    @property
    def health_check(self) -> str | None:
        """The service whose health decides whether a connection takes calls."""
        ...

    def opened(self, upstream: Upstream, connection: Connection) -> Callable[[], Awaitable[object]] | None:
        """A HELLO has come. What has to be done before calls go there, if anything."""
        ...

    def note(self, kind: EventKind, upstream: Upstream, detail: str = "", error: BaseException | None = None) -> None:
        """Something has happened that those who watch may want to know."""

    def changed(self, upstream: Upstream) -> None:
        """Its connections or its hopes are others now."""

    def over(self, cause: BaseException | None) -> None:
        """The one stream that there was takes no more calls."""


class Upstream:
    """One endpoint's connections.

    Attributes:
        connections: the ready ones and those that go away, the oldest first.
        dialler: opens them.
        vetting: holds back those that take no calls for now: not prepared yet, being tested, unhealthy.
        load: what its answers took, for balancing.
        tally: its failures, for ejection.
        breaker: its circuit; None where there is none.
    """

    def __init__(
        self, site: Site, owner: Owner, *, load: Load, breaker: Breaker | None = None, redial: bool = True
    ) -> None:
        self.name: str = site.address
        self.weight: float = site.weight
        self.load: Load = load
        self.tally: Tally = Tally()
        self.breaker: Breaker | None = breaker
        self.line: WaitingLine | None = None
        """Calls that may go nowhere else; made with the first of them."""
        self.connections: list[Connection] = []
        self.leaving: bool = False
        """The endpoint is not in the set any more."""
        self.dialler: Dialler = Dialler(site, self, owner, self._note_open, self._note_dial_failure)
        self.vetting: Vetting = Vetting(
            owner,
            tell=lambda kind, detail: owner.note(kind, self, detail),
            passed=self._take_up,
            failed=self._reject,
            changed=self._note_vetting,
        )
        self._owner = owner
        self._redial = redial
        self._closing_connections: dict[Connection, str] = {}
        """Those that are to end, and why."""
        self._up_since = -math.inf
        self._state = Connectivity.IDLE

    def __repr__(self) -> str:
        return f"<Upstream {self.name} ({self.state.value}): {len(self.connections)} connections>"

    # -- what a balancer asks: a Candidate -------------------------------------------------------------------------

    # Asked for two endpoints with every call, so plain loops, and no more than is needed.

    @property
    def free(self) -> int:
        """Places on the first connection that has any; 0 while its circuit lets no call pass."""
        if self.breaker is not None and not self.breaker.allows(trio.current_time()):
            return 0
        held = self.vetting.held
        for connection in self.connections:
            free = connection.free
            if free > 0 and connection not in held:
                return free
        return 0

    @property
    def in_flight(self) -> int:
        """Calls under way on its connections, orphans and the pool's own included."""
        calls = 0
        for connection in self.connections:
            calls += len(connection.calls)
        return calls

    def weight_at(self, now: float) -> float:
        """Its share, less while it starts slowly."""
        slow_start = self._owner.limits.slow_start
        return self.weight if slow_start is None else ramp(self.weight, self._up_since, now, slow_start)

    @property
    def calls(self) -> int:
        """The callers' calls under way, orphans included."""
        own = self.vetting.own_calls
        return sum(len(connection.calls) - own(connection) for connection in self.in_use)

    @property
    def places(self) -> int:
        """Free places on all its connections."""
        held = self.vetting.held
        return sum(max(0, connection.free) for connection in self.connections if connection not in held)

    @property
    def state(self) -> Connectivity:
        """As gRPC has it: a failure stays until there is a connection again."""
        if self._owner.closing or self.leaving:
            return Connectivity.SHUTDOWN
        if self.ready:
            return Connectivity.READY
        if self.dialler.failures or (self.vetting.complaint is not None and self.usable):
            return Connectivity.TRANSIENT_FAILURE
        return Connectivity.CONNECTING if self.dialler.under_way or self.connections else Connectivity.IDLE

    @property
    def usable(self) -> int:
        """Connections on which calls may begin, those included that are held for now."""
        return sum(connection.usable for connection in self.connections)

    @property
    def ready(self) -> int:
        """Connections that take calls."""
        return sum(connection.usable and connection not in self.vetting.held for connection in self.connections)

    @property
    def is_plain(self) -> bool:
        """True while to pick is to look at `connections`, and at nothing else."""
        limits = self._owner.limits
        return limits.spread and limits.validate_after is None and not self.vetting.held and self.breaker is None

    @property
    def in_use(self) -> list[Connection]:
        """Connections that calls may be on: the ready ones, and those whose first call went with the HELLO."""
        return [*self.connections, *self.dialler.early]

    @property
    def hopeless(self) -> bool:
        """Nothing that waits can mend it."""
        return not self.usable and self.dialler.hopeless

    # -- picking ---------------------------------------------------------------------------------------------------

    def pick(self) -> Connection | None:
        """A connection with a free place, or None. One that was silent for long is tested first."""
        limits = self._owner.limits
        ready = self.connections
        if self.vetting.held:
            ready = [connection for connection in ready if connection not in self.vetting.held]
        while True:
            connection = least_in_flight(ready, self._owner.draw) if limits.spread else oldest_first(ready)
            if connection is None or limits.validate_after is None:
                return connection
            if trio.current_time() - connection.heard_at <= limits.validate_after:
                return connection
            self.vetting.test(connection)
            ready = [other for other in ready if other is not connection]

    # -- life ------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The endpoint is gone from the set: no further calls, those in flight go on."""
        self.leaving = True
        self.dialler.cancel()
        for connection in list(self.connections):
            self.retire(connection, "its endpoint has left")
        self._tell()

    def retire(self, connection: Connection, reason: str) -> None:
        """Begin no further calls there, and close it once those in flight have ended."""
        if connection.usable:
            self._closing_connections[connection] = reason
            connection.retire()

    @property
    def gone(self) -> bool:
        """Nothing is left of it."""
        return not (self.connections or self.dialler.under_way)

    def close(self) -> None:
        """The end: within `close_timeout` its tasks have ended."""
        self.dialler.cancel(early_too=True)
        for connection in list(self.connections):
            connection.finish()

    # -- dialling --------------------------------------------------------------------------------------------------

    def dial_what_is_wanted(self) -> None:
        """Dial up to the minimum, and beyond it while somebody waits."""
        limits, dialling = self._owner.limits, self.dialler.under_way
        if self._owner.closing or self.leaving or dialling >= max(1, limits.min_connections):
            return
        wanted = dials_wanted(
            ready=self.usable,
            dialling=dialling,
            waiting=self._waiting(),
            least=limits.min_connections,
            most=limits.max_connections,
            failing=self.dialler.failures > 0,
        )
        if wanted:
            self.dial(wanted)

    def _waiting(self) -> int:
        """How many wait whom a further connection could serve: it is not always for want of one that no call goes there."""
        if not self.usable:
            return self._owner.waiting_for(self)
        if self.vetting.complaint is not None:
            return 0
        if self.breaker is not None and not self.breaker.allows(trio.current_time()):
            return len(self.line or ())
        return self._owner.waiting_for(self)

    @property
    def error(self) -> BaseException | None:
        """Why no call goes there, as far as that is known."""
        return self.vetting.complaint if self.vetting.complaint is not None and self.usable else self.dialler.last_error

    @trio.lowlevel.enable_ki_protection
    def dial(self, connections: int = 1) -> None:
        """Dial so many."""
        for _ in range(connections):
            self.dialler.dial()
        self._tell()

    def _note_dial_failure(self, error: RpcError) -> None:
        self._owner.note("connect_failed", self, error.message, error)
        self._tell()
        self._owner.timer.at(trio.current_time(), lambda _late: self.dial_what_is_wanted())

    # -- one connection's life -------------------------------------------------------------------------------------

    def _note_open(self, connection: Connection, nursery: trio.Nursery) -> None:
        connection.room_watchers.append(self._on_room)
        self.connections.append(connection)
        if self.leaving:  # It is here for the call that went with the HELLO, and ends with it.
            self.retire(connection, "its endpoint has left")
            return
        self.vetting.begin(connection, nursery, self._owner.opened(self, connection))

    def _reject(self, connection: Connection, error: BaseException) -> None:
        self._closing_connections[connection] = f"it could not be prepared: {shown(error, 300)}"
        self.dialler.note_failure(error, connection.opened_at, self.dialler.failures)
        connection.retire()

    def _take_up(self, connection: Connection) -> None:
        """It may take calls from now on."""
        limits, timer, now = self._owner.limits, self._owner.timer, connection.opened_at
        self.dialler.succeeded()
        if limits.slow_start is not None and self._state is not Connectivity.READY:
            self._up_since = trio.current_time()
        if limits.max_lifetime is not None:
            lifetime = limits.max_lifetime * (1 - LIFETIME_JITTER * self._owner.draw())
            timer.at(now + lifetime, self._unless_gone(connection, Upstream._retire_old))
        for timeout in filter(None, {limits.idle_timeout, limits.max_idle}):
            timer.at(now + timeout, self._unless_gone(connection, partial(Upstream._watch_idle, timeout=timeout)))
        self._owner.note("connected", self)
        self._tell()
        self._owner.admit(self, connection)
        if self.usable > limits.max_connections and not self.busy(connection):  # That was lowered meanwhile.
            self._close_idle(connection)
        self.dial_what_is_wanted()

    def _unless_gone(
        self, connection: Connection, action: Callable[[Upstream, Connection], object]
    ) -> Callable[[float], object]:
        """For the timer, which remembers for an hour what a lost connection was to do: it must keep nothing alive."""
        references = weakref.ref(self), weakref.ref(connection)

        def act(_lateness: float) -> None:
            upstream, connection = references[0](), references[1]()
            if upstream is not None and connection is not None:
                action(upstream, connection)

        return act

    def _retire_old(self, connection: Connection) -> None:
        if connection.usable:
            self._owner.pool_counters.closed_age += 1
            self.retire(connection, "max_lifetime")

    def _watch_idle(self, connection: Connection, *, timeout: float) -> None:
        """Close it if it has been idle for so long, unless it is of the minimum: that takes `max_idle`."""
        if not connection.usable:
            return
        now, limits = trio.current_time(), self._owner.limits
        due = (now if self.busy(connection) else connection.used_at) + timeout
        if due <= now and (timeout == limits.max_idle or self.usable > limits.min_connections):
            self._close_idle(connection)
        else:
            again = partial(Upstream._watch_idle, timeout=timeout)
            self._owner.timer.at(due if due > now else now + timeout, self._unless_gone(connection, again))

    def _close_idle(self, connection: Connection) -> None:
        self._owner.pool_counters.closed_idle += 1
        self.retire(connection, "not needed")

    def busy(self, connection: Connection) -> bool:
        """True while any call is under way there, in either direction, but for the pool's own."""
        return len(connection.calls) > self.vetting.own_calls(connection) or connection.busy_serving

    def _on_room(self, connection: Connection) -> None:
        """A call has left its place, or the connection's state has changed."""
        if not (connection.going_away or connection.closed):
            self._owner.admit(self, connection)
            self._trim(connection)
            return
        self.vetting.stop_watching(connection)
        if self._owner.closing:
            if connection.closed:
                self._note_end(connection)
            return
        if connection not in self._closing_connections:
            # The peer's wish: one that lets us in only to send us away again must not make us spin.
            self.dialler.delay(connection.opened_at)
        if connection.closed:
            self._note_end(connection)
        elif not self.busy(connection) and not connection.saying_goodbye:
            self._say_goodbye(connection)
        if not self._redial:
            self._owner.over(connection.cause)
        self._tell()
        self.dial_what_is_wanted()

    def _trim(self, connection: Connection) -> None:
        """Close what is beyond a maximum that was lowered, or idle where nothing idle is to be kept."""
        limits = self._owner.limits
        if limits.idle_timeout != 0 and len(self.connections) <= limits.max_connections:
            return
        most = limits.min_connections if limits.idle_timeout == 0 else limits.max_connections
        # One that is held is not idle: those whom it was dialled for are still waiting for it.
        if self.usable > most and not self.busy(connection) and connection not in self.vetting.held:
            self._close_idle(connection)

    def trim(self) -> None:
        """The bounds are others now."""
        for connection in list(self.connections):
            if connection.usable:
                self._trim(connection)

    def _say_goodbye(self, connection: Connection) -> None:
        if connection not in self._closing_connections:
            self._owner.pool_counters.closed_going_away += 1
            self._closing_connections[connection] = "the server goes away"
        connection.finish()

    def _note_end(self, connection: Connection) -> None:
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        self.vetting.forget(connection)
        reason = self._closing_connections.pop(connection, "the pool is closing" if self._owner.closing else None)
        if reason is not None:
            self._owner.note("closed", self, reason)
        else:
            self._owner.pool_counters.lost += 1
            self.dialler.last_error = connection.cause
            self._owner.note("lost", self, str(connection.cause), connection.cause)
            if self._owner.heartbeat.interval is not None:
                for other in self.connections:  # What took this one may have taken them as well.
                    self.vetting.suspect(other)

    def _note_vetting(self, connection: Connection) -> None:
        """It is held back, or takes calls again."""
        self._tell()
        self._owner.admit(self, connection)
        if connection.usable:
            self._trim(connection)
        if connection not in self.vetting.held:
            self.dial_what_is_wanted()  # Which it was not while it declined calls.

    def _tell(self) -> None:
        state = self.state
        if state is not self._state:
            self._state = state
            self._owner.note("state", self, state.value)
        self._owner.changed(self)


def own_copy(error: RpcError) -> RpcError:
    """Each call gets an exception object of its own, with one common cause."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
