"""Which requests a server takes, and which it refuses for lack of room: a pure decision.

It limits how many handlers run at once, and not how often they are called: what a server can bear is a number of
things under way, whatever each of them takes. What is beyond is refused at once, and not queued here: it surely did
not run, so its caller goes to another server, or comes again later. The one queue is the caller's pool.

A call that is taken gets a *place*, which it leaves when its handler has ended: not when its caller has gone, or its
connection was lost. Else a client that connects, calls and goes away, again and again, would pile handlers up.

Almost every server has one limit, `max_calls`, so that is a comparison and an addition: the `Admission` itself is the
place of such calls. All others are asked for with `admit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from ._adaptive import Gradient2
from ._config import ServerLimits
from ._policies import AdaptiveLimit
from ._statistics import AdmissionCounters

__all__ = ["Admission", "Place", "party_of"]


class Ended(Protocol):
    """What a place asks of the call that leaves it."""

    started: bool
    by_caller: bool
    by_peer: str
    inbound: Any
    outbound: Any


class Place(Protocol):
    """What a call holds until its handler has ended."""

    def leave(self, call: Ended | None) -> None:
        """The handler has ended; without a call, after its connection was lost. Exactly once."""
        ...


class Admission:
    """The limits of one server together, and how much of them is taken."""

    __slots__ = (
        "_clock",
        "_counters",
        "_gradient",
        "_max_calls",
        "_methods",
        "_parties",
        "_per_principal",
        "exempt",
        "most",
        "running",
    )

    def __init__(
        self,
        limits: ServerLimits | None = None,
        *,
        adaptive: AdaptiveLimit | None = None,
        counters: AdmissionCounters | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        max_calls = None if limits is None else limits.max_calls
        self._max_calls = math.inf if max_calls is None else max_calls
        self._per_principal = None if limits is None else limits.max_calls_per_principal
        self._gradient = Gradient2(adaptive, clock()) if adaptive is not None else None
        self._counters = counters if counters is not None else AdmissionCounters()
        self._clock = clock
        self._parties: dict[Hashable, int] = {}
        self._methods: dict[str, int] = {}
        self.running: int = 0
        """Handlers that have not ended, apart from the exempt ones."""
        self.exempt: int = 0
        """Handlers of methods with `unlimited=True` that have not ended."""
        self.most: float = self._max_calls if self._per_principal is None and adaptive is None else 0
        """With fewer `running`, a call may be counted in there without `admit`, if its method has no limit of its own."""

    @property
    def adaptive_limit(self) -> int | None:
        """Where the adaptive limit stands."""
        return None if self._gradient is None else self._gradient.limit

    def admit(self, method: str, limit: float | None, party: Hashable) -> Place | str:
        """A place for a call, or in a sentence why there is none.

        `limit`: the method's own, `inf` for one that none applies to. `party`: who calls.
        """
        if limit == math.inf:
            self.exempt += 1
            return _Exempt(self)
        refusal = self._refusal(method, limit, party)
        if refusal is not None:
            return refusal
        self.running += 1
        if limit is None and self._per_principal is None and self._gradient is None:
            return self
        if limit is not None:
            self._methods[method] = self._methods.get(method, 0) + 1
        if self._per_principal is not None:
            self._parties[party] = self._parties.get(party, 0) + 1
        return _Particular(self, None if limit is None else method, party, self._clock())

    def _refusal(self, method: str, limit: float | None, party: Hashable) -> str | None:
        """The narrowest limit first: it tells its caller most."""
        counters = self._counters
        if limit is not None and self._methods.get(method, 0) >= limit:
            counters.refused_method += 1
            return f"{limit} calls of {method} are running already (limit={limit})"
        most = self._per_principal
        if most is not None and self._parties.get(party, 0) >= most:
            counters.refused_principal += 1
            return f"{most} calls of this caller are running already (max_calls_per_principal)"
        if self._gradient is not None and self.running >= self._gradient.limit:
            counters.refused_adaptive += 1
            return f"{self.running} calls are running, and more would make all of them slower (adaptive)"
        if self.running >= self._max_calls:
            counters.refused_server += 1
            return f"{self.running} calls are running on this server already (max_calls)"
        return None

    def leave(self, call: Ended | None) -> None:
        """A call without further limits has ended."""
        self.running -= 1

    def _leave(self, place: _Particular, call: Ended | None) -> None:
        if self._gradient is not None and call is not None and _tells(call):
            now = self._clock()
            self._gradient.note(now - place.since, self.running, now)
        self.running -= 1
        if place.method is not None:
            _lower(self._methods, place.method)
        if self._per_principal is not None:
            _lower(self._parties, place.party)


class _Particular:
    """The place of a call that further limits apply to."""

    __slots__ = ("_admission", "method", "party", "since")

    def __init__(self, admission: Admission, method: str | None, party: Hashable, since: float) -> None:
        self._admission = admission
        self.method: str | None = method
        """Its name, if it has a limit of its own."""
        self.party: Hashable = party
        self.since: float = since

    def leave(self, call: Ended | None) -> None:
        self._admission._leave(self, call)


class _Exempt:
    """The place of a call that no limit applies to."""

    __slots__ = ("_admission",)

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def leave(self, call: Ended | None) -> None:
        self._admission.exempt -= 1


def _tells(call: Ended) -> bool:
    """Whether its time says something of the server.

    A stream lasts as long as its consumer likes, and so does a call that was cancelled. One whose deadline has passed
    has taken at least that long.
    """
    return call.started and not call.by_caller and not call.by_peer and call.inbound is None and call.outbound is None


def _lower(counts: dict[Any, int], key: Hashable) -> None:
    """One less; nothing is kept of who has no call any more."""
    left = counts.pop(key) - 1
    if left:
        counts[key] = left


def party_of(principal: Any, host: str) -> Hashable:
    """Whom a connection and its calls are counted for: its principal, or without one the host that it comes from.

    Principals are the same if they are equal; those that cannot be hashed, if they look the same.
    """
    if principal is None:
        return ("a host", host)  # No principal of that name.
    try:
        hash(principal)
    except TypeError:
        return (type(principal), repr(principal))
    hashable: Hashable = principal
    return hashable
