"""The lines of a pool: one for calls that may go anywhere, and one at each endpoint that some may go to alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TypeAlias

import attrs
import trio

from ._balancer import Balancer
from ._connection import Connection
from ._errors import CircuitOpen, ConnectError, RpcError
from ._roster import Roster
from ._statistics import Connectivity
from ._upstream import Upstream, own_copy
from ._waiting import Attempt, WaitingLine

__all__ = ["Lines"]

Why: TypeAlias = Callable[[], tuple[str, BaseException | None]]


class Lines:
    """Who waits in a pool, and who gets the next free place."""

    def __init__(self, roster: Roster, balancer: Balancer, make_line: Callable[[Why], WaitingLine]) -> None:
        self.common: WaitingLine = make_line(self._why)
        self.suspended: bool = False
        """Nobody gets a place."""
        self._roster = roster
        self._balancer = balancer
        self._make_line = make_line

    def __len__(self) -> int:
        return sum(map(len, self._all()))

    def _all(self) -> Iterable[WaitingLine]:
        yield self.common
        for upstream in self._roster.all:
            if upstream.line is not None:
                yield upstream.line

    # -- joining ---------------------------------------------------------------------------------------------------

    def join(self, attempt: Attempt) -> None:
        """Wait for a place anywhere. Raises PoolExhausted, CircuitOpen."""
        if attempt.acquire_timeout is not None and self._balancer.all_open():
            raise self._circuits_open()
        self.common.join(attempt)

    def _circuits_open(self) -> CircuitOpen:
        where = self._roster.target
        error = CircuitOpen(f"the circuits of all endpoints of {where} are open: they have failed too much", peer=where)
        error.retry_after = self._balancer.next_probe_in()
        return error

    def join_at(self, upstream: Upstream, attempt: Attempt) -> None:
        """Wait for a place at this endpoint. Raises PoolExhausted."""
        if upstream.line is None:
            upstream.line = self._make_line(partial(self._why_at, [upstream]))
            if self.suspended:
                upstream.line.pause()
        upstream.line.join(attempt)

    def waiting_for(self, upstream: Upstream) -> int:
        """How many a connection there could serve."""
        return len(self.common) + len(upstream.line or ())

    # -- serving ---------------------------------------------------------------------------------------------------

    def admit(self, upstream: Upstream, connection: Connection) -> None:
        """Fill the free places of a connection: by class, then who joined first, in whichever line."""
        if self.suspended or connection in upstream.vetting.held:
            return
        if not (self.common.count or upstream.line):
            return
        now = trio.current_time()
        while (self.common.count or upstream.line) and connection.free > 0:
            line = self._next_at(upstream)
            if line is None:
                return
            line.admit_first(connection, now)

    def _next_at(self, upstream: Upstream) -> WaitingLine | None:
        own = upstream.line or None
        common = self.common if self.common.count and self._balancer.takes(upstream) else None
        if own is None or common is None:
            return own or common
        own_head, common_head = own.head(), common.head()
        assert own_head is not None
        assert common_head is not None
        return own if own_head <= common_head else common

    def admit_all(self) -> None:
        """There may be places that nobody was told of: who waits gets them as if they had come now."""
        if self.suspended:
            return
        for upstream in self._roster.upstreams.values():
            if upstream.line:
                for connection in list(upstream.connections):
                    self.admit(upstream, connection)
        while (first := self.common.first()) is not None:
            picked = self._balancer.pick(first.route)
            if picked is None:
                return
            self.common.admit_first(picked, trio.current_time())

    def admit_early(self, upstream: Upstream, connection: Connection, until: float) -> bool:
        """Start one call on a connection that has not heard HELLO yet, if there is one that may be."""
        if self.suspended or not self._balancer.takes(upstream):
            return False
        return self.common.admit_early(connection, until)

    def suspend(self) -> None:
        """Serve nobody, and let nobody's time run out."""
        self.suspended = True
        for line in self._all():
            line.pause()

    def resume(self) -> None:
        """Go on."""
        self.suspended = False
        for line in self._all():
            line.resume()
        self.admit_all()

    # -- failing ---------------------------------------------------------------------------------------------------

    def fail_all(self, make: Callable[[], Exception]) -> None:
        """Nobody will get a place."""
        for line in list(self._all()):
            line.fail_all(make)

    def fail_hopeless(self, upstream: Upstream | None = None) -> None:
        """Who fails fast learns at once that no connection can be had; the others, if waiting cannot mend it."""
        if self.common.count:
            _fail(self.common, self._despair())
        if upstream is None or not upstream.line:
            return
        if upstream.leaving:
            upstream.line.fail_all(partial(self.gone, upstream.name))
        else:
            _fail(upstream.line, self._despair_at(upstream))

    def note_circuits(self) -> None:
        """Circuits are others now: if all are open, nobody in line gets a place soon."""
        if self._balancer.all_open():
            self.common.fail(self._circuits_open, lambda attempt: attempt.acquire_timeout is not None)

    def doubt(self, attempt: Attempt, upstream: Upstream | None = None) -> None:
        """The same for one who has just joined; the others know already."""
        despair = self._despair() if upstream is None else self._despair_at(upstream)
        if despair is not None and despair.concerns(attempt):
            attempt.leave()
            attempt.settle(own_copy(despair.error))

    def _despair(self) -> Despair | None:
        roster = self._roster
        if not roster.failing:
            return None
        if roster.upstreams:
            return _despair_of(roster.upstreams.values())
        return Despair(roster.error, lasting=False) if roster.error is not None else None

    def _despair_at(self, upstream: Upstream) -> Despair | None:
        return _despair_of([upstream]) if upstream.state is Connectivity.TRANSIENT_FAILURE else None

    def gone(self, name: str) -> ConnectError:
        """What a call gets that may go nowhere but to an endpoint that has left."""
        return ConnectError(f"{name} is no endpoint of {self._roster.target} any more", peer=name)

    def _why(self) -> tuple[str, BaseException | None]:
        upstreams = list(self._roster.upstreams.values())
        if upstreams:
            return self._why_at(upstreams)
        error = self._roster.error
        return (f"no endpoint of {self._roster.target} is known" if error is None else str(error)), error

    def _why_at(self, upstreams: Sequence[Upstream]) -> tuple[str, BaseException | None]:
        where = self._roster.target if len(upstreams) > 1 else upstreams[0].name
        error = next((upstream.error for upstream in upstreams if upstream.error is not None), None)
        if self.suspended:
            return f"the pool of {where} is suspended", error
        ready = sum(upstream.ready for upstream in upstreams)
        if ready:
            return f"all places of {ready} connections to {where} are taken", error
        return (f"no connection to {where}" if error is None else str(error)), error


@attrs.frozen
class Despair:
    """No connection can be had for now."""

    error: RpcError
    """Why."""
    lasting: bool
    """It will not mend while somebody waits."""

    def concerns(self, attempt: Attempt) -> bool:
        """Whether it is to fail: those who fail fast, and all but the most patient where waiting cannot help."""
        return attempt.fail_fast or (self.lasting and attempt.acquire_timeout is not None)


def _despair_of(upstreams: Collection[Upstream]) -> Despair | None:
    for upstream in upstreams:
        error = upstream.error
        if isinstance(error, RpcError):
            return Despair(error, lasting=all(upstream.hopeless for upstream in upstreams))
    return None


def _fail(line: WaitingLine, despair: Despair | None) -> None:
    if despair is not None:
        line.fail(partial(own_copy, despair.error), despair.concerns)
