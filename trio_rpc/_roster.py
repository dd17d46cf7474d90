"""The set of a pool's endpoints: which there are, which are leaving, and how a resolver changes that."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterable, Callable, Sequence
from typing import Any

import trio

from ._backoff import delay_before
from ._contained import parted
from ._dialler import Site
from ._endpoint import Endpoint, endpoints
from ._errors import ConnectError, RpcError
from ._events import Events
from ._logs import limited
from ._policies import Backoff
from ._statistics import Connectivity
from ._text import described, shown
from ._upstream import Upstream
from .resolvers import Polled

__all__ = ["Roster"]

log = limited(logging.getLogger("trio_rpc.pool"))

_BEST_FIRST = (
    Connectivity.READY,
    Connectivity.CONNECTING,
    Connectivity.TRANSIENT_FAILURE,
    Connectivity.IDLE,
)


class Roster:
    """The endpoints of the moment. `changed()` is told of a new set, `failed()` that there would have been one."""

    def __init__(
        self,
        target: str,
        make: Callable[[Site], Upstream],
        changed: Callable[[], object],
        failed: Callable[[], object],
        events: Events,
    ) -> None:
        self.upstreams: dict[str, Upstream] = {}
        """By address, in the order of the list or resolver."""
        self.leaving: dict[Upstream, None] = {}
        """Those whose endpoints are gone, while calls end there; in order."""
        self.error: RpcError | None = None
        """The latest reason for not knowing any endpoint, or for not knowing whether they still are the ones."""
        self.failures: int = 0
        """How many reasons there were, in all."""
        self.target: str = target
        self._states: dict[Upstream, Connectivity] = {}
        self._counts: Counter[Connectivity] = Counter()
        """How many are in each of these states: nobody looks at a thousand endpoints because one has changed."""
        self._make = make
        self._changed = changed
        self._failed = failed
        self._events = events

    @property
    def all(self) -> list[Upstream]:
        """Those that are leaving too."""
        return [*self.upstreams.values(), *self.leaving]

    def replace(self, sites: Sequence[Site]) -> None:
        """Let these be the endpoints: who is new can be dialled, who is gone is drained."""
        old, self.upstreams = self.upstreams, {}
        for site in sites:
            upstream = old.pop(site.address, None)
            if upstream is None:
                upstream = self._make(site)
                self._events.tell("joined", site.address)
            upstream.weight, upstream.dialler.site = site.weight, site
            self.upstreams[site.address] = upstream
        self._states = {upstream: upstream.state for upstream in self.upstreams.values()}
        self._counts = Counter(self._states.values())
        for upstream in old.values():
            self.leaving[upstream] = None
            self._events.tell("left", upstream.name)
            upstream.leave()
        self._changed()

    def note(self, upstream: Upstream) -> None:
        """The state of one may be another now; one who was leaving is forgotten once it has left."""
        if upstream.leaving:
            if upstream.gone:
                self.leaving.pop(upstream, None)
            return
        before, after = self._states[upstream], upstream.state
        if after is not before:
            self._states[upstream] = after
            self._counts[before] -= 1
            self._counts[after] += 1

    @property
    def failing(self) -> bool:
        """True if none can be reached, or if it is not known which there are."""
        if not self.upstreams:
            return self.error is not None
        return self._counts[Connectivity.TRANSIENT_FAILURE] == len(self.upstreams)

    @property
    def state(self) -> Connectivity:
        """The best of all states."""
        if not self.upstreams and self.error is not None:
            return Connectivity.TRANSIENT_FAILURE
        return next((state for state in _BEST_FIRST if self._counts[state]), Connectivity.IDLE)

    async def follow(
        self,
        resolver: AsyncIterable[Any],
        site_of: Callable[[Endpoint], Site],
        backoff: Backoff,
        draw: Callable[[], float],
    ) -> None:
        """Take each set that the resolver yields, until it ends; then the last one stays.

        What it raises is told, and it is asked anew, with a back-off. An empty set is more often a fault than a wish:
        the last good one stays, as it does after one that cannot be.
        """
        failures = 0
        watchers = resolver.watchers if isinstance(resolver, Polled) else []
        watchers.append(self._note_look)
        try:
            while True:
                try:
                    async for found in resolver:
                        failures = 0
                        self._take(found, site_of)
                    return
                except BaseException as exc:
                    if parted(exc, KeyboardInterrupt)[0] is not None:
                        raise
                    failures += 1
                    self._note_failure(exc)
                await trio.sleep(delay_before(failures + 1, backoff, draw))
        finally:
            watchers.remove(self._note_look)

    def _take(self, found: Any, site_of: Callable[[Endpoint], Site]) -> None:
        """One set. One that cannot be is told, and the iteration is not left for it: a better one may come next."""
        try:
            sites = [site_of(endpoint) for endpoint in endpoints(found)]
        except Exception as exc:
            self._note_failure(exc)
            return
        if sites:
            self.replace(sites)
        elif not self.upstreams:
            self._fail(ConnectError(f"{self.target} has no endpoint", peer=self.target))

    def _note_failure(self, exc: BaseException) -> None:
        error = ConnectError(f"cannot resolve {self.target}: {described(exc)}", peer=self.target)
        error.__cause__ = exc
        log.warning("%s", shown(error.message, 300))
        self._fail(error)

    def _note_look(self, problem: str) -> None:
        """What a `resolvers.Polled` tells: it logs for itself, and goes on."""
        self._fail(ConnectError(f"cannot resolve {problem}", peer=self.target))

    def _fail(self, error: RpcError) -> None:
        self.error = error
        self.failures += 1
        self._events.tell("resolver_failed", None, error.message, error)
        self._failed()
