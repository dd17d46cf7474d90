"""Which of a pool's upstreams a call goes to: where the pure decisions of `_balance`, `_rendezvous`, `_ejection` and
`_breaker` meet the clock and what became of the calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import trio

from ._balance import Policy, policy_of
from ._breaker import Breaker, Circuit
from ._calls import Outgoing
from ._connection import Connection
from ._ejection import Ejector, Tally, panics
from ._outcomes import counts_against, ran_late
from ._placement import Route
from ._policies import Balance, OutlierEjection
from ._rendezvous import Rendezvous
from ._statistics import Connectivity, EndpointStatistics, EventKind
from ._timer import Moment, Timer
from ._upstream import Upstream

__all__ = ["Balancer"]


class Balancer:
    """Chooses among the upstreams of one pool.

    `note(kind, upstream, detail)` is told of each ejection, restoration and change of a circuit: others may get calls
    from then on.
    """

    def __init__(
        self,
        balance: Balance,
        ejection: OutlierEjection | None,
        timer: Timer,
        draw: Callable[[], float],
        note: Callable[[EventKind, Upstream, str], object],
    ) -> None:
        self._policy: Policy = policy_of(balance)
        self._ejection = ejection
        self._ejector = Ejector(ejection) if ejection is not None else None
        self._timer = timer
        self._draw = draw
        self._note = note
        self._upstreams: Sequence[Upstream] = ()
        self._tallies: Sequence[Tally] = ()
        self._candidates: list[Upstream] | None = None
        """Those that may get calls; None if that is to be found out anew."""
        self._rendezvous: Rendezvous | None = None
        self._sweep: Moment | None = None
        self._ejected_until = -math.inf
        """When the last of all ejections ends."""

    @property
    def observes(self) -> bool:
        """Whether what becomes of calls matters."""
        return len(self._upstreams) > 1 or any(upstream.breaker is not None for upstream in self._upstreams)

    def replace(self, upstreams: Sequence[Upstream]) -> None:
        """Choose among these from now on."""
        self._upstreams = upstreams
        self._tallies = [upstream.tally for upstream in upstreams]
        self._rendezvous = None
        self.reopen()
        if self._ejector is not None and len(upstreams) > 1 and self._sweep is None:
            self._sweep_later()

    def reopen(self) -> None:
        """Some upstream's state has changed: find out anew which may get calls."""
        self._candidates = None

    # -- choosing --------------------------------------------------------------------------------------------------

    def choose(self, route: Route | None) -> Upstream | None:
        """The upstream for one more call, which has a free place; None if none has."""
        now = trio.current_time()
        candidates = self._candidates
        if candidates is None:
            candidates = self._candidates = self._fit(now)
        if route is None:
            return self._policy.choose(candidates, now, self._draw)
        if route.avoid:
            others = [upstream for upstream in candidates if upstream.name not in route.avoid]
            if others:
                chosen = self._choose_by(route.key, others, now)
                if chosen is not None:
                    return chosen
        return self._choose_by(route.key, candidates, now)

    def _choose_by(self, key: str | None, candidates: Sequence[Upstream], now: float) -> Upstream | None:
        if key is None:
            return self._policy.choose(candidates, now, self._draw)
        if self._rendezvous is None:
            self._rendezvous = Rendezvous((upstream.name, upstream.weight) for upstream in self._upstreams)
        return self._rendezvous.choose(key, candidates)

    def _fit(self, now: float) -> list[Upstream]:
        """Those that are connected and not ejected; if that leaves too few, those that are connected."""
        ready = [upstream for upstream in self._upstreams if upstream.state is Connectivity.READY]
        if self._ejector is None or self._ejection is None:
            return ready
        kept = [upstream for upstream in ready if not self._ejector.ejected(upstream.tally, now)]
        return ready if not kept or panics(len(kept), len(self._upstreams), self._ejection.panic) else kept

    def pick(self, route: Route | None) -> Connection | None:
        """A connection for one more call, which is to begin in this step; None if nobody has a free place."""
        while (upstream := self.choose(route)) is not None:
            connection = upstream.pick()
            if connection is not None:
                return connection
            # All its free connections are tested first, and until then it has none.
        return None

    @property
    def ejecting(self) -> bool:
        """True while any upstream is ejected, which may get calls again when others can take none."""
        return self._ejected_until > -math.inf and trio.current_time() < self._ejected_until

    def takes(self, upstream: Upstream) -> bool:
        """True if calls that could go anywhere may go there."""
        if upstream.breaker is not None and not upstream.breaker.allows(trio.current_time()):
            return False
        if self._ejector is None or len(self._upstreams) < 2:
            return True
        now = trio.current_time()
        return not self._ejector.ejected(upstream.tally, now) or upstream in self._fit(now)

    def all_open(self) -> bool:
        """True if no circuit lets a call pass."""
        circuits = [upstream.breaker for upstream in self._upstreams if upstream.breaker is not None]
        if not circuits or len(circuits) < len(self._upstreams):
            return False
        now = trio.current_time()
        return not any(circuit.allows(now) for circuit in circuits)

    def next_probe_in(self) -> float:
        """Seconds until a circuit may let a call pass; there is one that is open."""
        times = [upstream.breaker.next_at for upstream in self._upstreams if upstream.breaker is not None]
        return max(0.0, min(when for when in times if when is not None) - trio.current_time())

    # -- what became of calls --------------------------------------------------------------------------------------

    def began(self, upstream: Upstream, breaker: Breaker, now: float) -> None:
        """A call has begun there at `now`, its own `started_at`; the endpoint has a circuit."""
        before = breaker.next_at
        breaker.begin(now)
        if breaker.next_at is not None and breaker.next_at != before:  # A probe, which may not end in time.
            self._timer.at(breaker.next_at, lambda _late: self._half_open(upstream, breaker))

    def observe(self, upstream: Upstream, call: Outgoing) -> None:
        """A call there has ended."""
        now, load = trio.current_time(), upstream.load
        failed, elapsed = counts_against(call), now - call.started_at
        if failed is None and ran_late(call, now) and load.is_too_late(elapsed, now):
            failed = True
        if failed:
            load.note_failure(now)
        elif call.received is None:  # A stream lasts for as long as its consumer likes.
            if failed is None:
                load.note_cancelled(elapsed, now)
            else:
                load.note_success(elapsed, now)
        if upstream.breaker is not None:
            self._judge_circuit(upstream, upstream.breaker, failed, call)
        if failed is None or self._ejector is None or len(self._upstreams) < 2:
            return
        if self._ejector.note(upstream.tally, failed, now, self._tallies):
            self._eject(upstream, "too many failures in a row")

    def _judge_circuit(self, upstream: Upstream, breaker: Breaker, failed: bool | None, call: Outgoing) -> None:
        now = trio.current_time()
        state = breaker.note(failed, now, call.started_at)
        if state is not None:
            self._note("circuit", upstream, state.value)
            if breaker.next_at is not None:
                self._timer.at(breaker.next_at, lambda _late: self._half_open(upstream, breaker))
        elif failed is None and breaker.state(now) is Circuit.HALF_OPEN:  # The probe told nothing: another may go.
            self._note("circuit", upstream, Circuit.HALF_OPEN.value)

    def _half_open(self, upstream: Upstream, breaker: Breaker) -> None:
        self._note("circuit", upstream, breaker.state(trio.current_time()).value)

    # -- ejection --------------------------------------------------------------------------------------------------

    def _eject(self, upstream: Upstream, reason: str) -> None:
        self.reopen()
        self._ejected_until = max(self._ejected_until, upstream.tally.until)
        self._timer.at(upstream.tally.until, lambda _late: self._restore(upstream))
        self._note("ejected", upstream, reason)

    def _restore(self, upstream: Upstream) -> None:
        assert self._ejector is not None
        if not self._ejector.ejected(upstream.tally, trio.current_time()):
            self.reopen()
            self._note("restored", upstream, "")

    def _sweep_later(self) -> None:
        assert self._ejection is not None
        self._sweep = self._timer.at(trio.current_time() + self._ejection.interval, self._sweep_now)

    def _sweep_now(self, _lateness: float) -> None:
        assert self._ejector is not None
        self._sweep = None
        by_tally = {upstream.tally: upstream for upstream in self._upstreams}
        for tally in self._ejector.sweep(by_tally, trio.current_time()):
            self._eject(by_tally[tally], "it fails far more than the others")
        if len(self._upstreams) > 1:
            self._sweep_later()

    # -- looking at it ---------------------------------------------------------------------------------------------

    def statistics(self, upstream: Upstream) -> EndpointStatistics:
        """A snapshot of one endpoint."""
        now = trio.current_time()
        breaker = upstream.breaker
        return EndpointStatistics(
            address=upstream.name,
            state=upstream.state,
            weight=upstream.weight,
            share=upstream.weight_at(now),
            connections=len(upstream.connections),
            dialling=upstream.dialler.under_way,
            in_flight=upstream.calls,
            free=upstream.places,
            waiting=len(upstream.line or ()),
            latency=upstream.load.latency(now),
            ejected=self._ejector is not None and self._ejector.ejected(upstream.tally, now),
            circuit="closed" if breaker is None else breaker.state(now).value,
        )
