"""The pool's public face. What it does is the hub's."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TypeVar, Unpack

import attrs
import trio

from ._checks import checked_grace
from ._config import PoolLimits
from ._errors import RpcError
from ._hub import Hub
from ._options import StubOptions
from ._scope import hidden_nursery
from ._statistics import Connectivity, EndpointStatistics, PoolEvent, PoolStatistics
from ._target import Target
from ._upstream import Upstream, own_copy

__all__ = ["EndpointTarget", "Pool", "keep_open"]

S = TypeVar("S")


class Pool(Target):
    """Connections to a target, multiplexed, balanced, kept alive and replaced. Made by `open_pool` and `run_pool`."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub.make_caller(self.__repr__, hub.pick, hub.join))
        self._hub = hub
        self._endpoints: weakref.WeakValueDictionary[Upstream, EndpointTarget] = weakref.WeakValueDictionary()
        """Those that somebody holds: an endpoint that has left is not kept for who has forgotten it."""

    def __repr__(self) -> str:
        stats, keeper = self.statistics(), self._hub.keeper
        state = "closed" if keeper.closed.is_set() else "closing" if keeper.closing else "open"
        return (
            f"<Pool {self.target} ({state}): {stats.busy} busy, {stats.idle} idle, {stats.dialling} dialling "
            f"of {stats.max_connections}; {stats.in_flight} calls in flight, {stats.waiting} waiting>"
        )

    # -- looking at it ---------------------------------------------------------------------------------------------

    @property
    def target(self) -> str:
        """What it was opened with, as text."""
        return self._hub.target

    @property
    def limits(self) -> PoolLimits:
        """Its bounds; `resize` changes some."""
        return self._hub.limits

    @property
    def rng(self) -> Callable[[], float]:
        """Yields numbers in [0, 1), for jitter and random choices; set another one to make them repeatable."""
        return self._hub.rng

    @rng.setter
    def rng(self, rng: Callable[[], float]) -> None:
        self._hub.rng = rng

    @property
    def state(self) -> Connectivity:
        """What the pool can be said to be in, which is the best of its endpoints' states."""
        return self._hub.state

    @property
    def endpoints(self) -> tuple[EndpointTarget, ...]:
        """The endpoints of the moment, in the order of the list or resolver; each can be called by itself."""
        return tuple(map(self._endpoint, self._hub.upstreams))

    def _endpoint(self, upstream: Upstream) -> EndpointTarget:
        endpoint = self._endpoints.get(upstream)
        if endpoint is None:
            endpoint = self._endpoints[upstream] = EndpointTarget(self._hub, upstream)
        return endpoint

    def stubs(self, contract: Callable[..., S], /, **options: Unpack[StubOptions]) -> list[S]:
        """One stub for each endpoint of the moment, in order: what the fan-out helpers take. Options as for `stub`."""
        return [endpoint.stub(contract, **options) for endpoint in self.endpoints]

    def events(self, *, buffer: int = 1000) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[PoolEvent]]:
        """Watch what happens, within `async with pool.events() as events:`.

        Ends with the pool. Nothing ever waits for a watcher: who is more than `buffer` events behind misses some,
        and gets an event of the kind `missed` that says how many.
        """
        return self._hub.events.watch(buffer)

    def statistics(self) -> PoolStatistics:
        """A snapshot; cheap."""
        hub, line, connections = self._hub, self._hub.line_counters, self._hub.connection_counters
        upstreams, number = hub.roster.all, len(hub.roster.upstreams)
        ready = [(upstream, connection) for upstream in upstreams for connection in upstream.connections]
        busy = sum(upstream.busy(connection) for upstream, connection in ready)
        return PoolStatistics(
            endpoints=number,
            connections=len(ready),
            idle=len(ready) - busy,
            busy=busy,
            dialling=sum(upstream.dialler.under_way for upstream in upstreams),
            min_connections=hub.limits.min_connections * number,
            max_connections=hub.limits.max_connections * number,
            in_flight=sum(upstream.calls for upstream in upstreams),
            spare=sum(max(0, connection.free) for _, connection in ready),
            waiting=len(hub.lines),
            orphans=connections.orphans,
            serving=sum(len(connection.serving) for _, connection in ready),
            queued=line.queued,
            wait_seconds=line.wait_seconds,
            usage_seconds=connections.usage_seconds,
            timeouts=line.timeouts,
            exhausted=line.exhausted,
            late_replies=connections.late_replies,
            evicted=connections.evicted,
            **attrs.asdict(hub.caller_counters),
            **attrs.asdict(hub.pool_counters),
        )

    async def connect(self) -> None:
        """Wait for one connection, dialling if there is none.

        Raises the error of the dials if all have failed, what is known of the servers' health if none is well, and the
        error of the resolver if there is nothing to dial.
        """
        hub = self._hub
        hub.start_filling()
        while hub.state is not Connectivity.READY:
            hub.check_open()
            unresolved = hub.roster.failures
            errors = {upstream: upstream.dialler.errors for upstream in hub.upstreams}
            for upstream in errors:
                if not upstream.dialler.under_way and not upstream.usable:
                    upstream.dial()
            await hub.changes.park()
            failed = [upstream for upstream, before in errors.items() if upstream.dialler.errors > before]
            unwell = [upstream for upstream in errors if upstream.vetting.complaint is not None]
            error = (failed or unwell)[-1].error if failed or unwell else None
            if not hub.upstreams and hub.roster.failures > unresolved:
                error = hub.roster.error
            if hub.state is Connectivity.TRANSIENT_FAILURE and isinstance(error, RpcError):
                raise own_copy(error)

    async def wait_connected(self, connections: int = 1) -> None:
        """Wait until so many connections are ready, over all endpoints. Raises PoolClosed if the pool closes before."""
        hub = self._hub
        hub.start_filling()
        while sum(upstream.ready for upstream in hub.upstreams) < connections:
            hub.check_open()
            await hub.changes.park()

    # -- changing it -----------------------------------------------------------------------------------------------

    def resize(self, *, min_connections: int | None = None, max_connections: int | None = None) -> None:
        """Change the bounds of each endpoint's connections.

        A higher minimum is dialled now; a lower maximum comes about as connections get idle. Raises ValueError as
        `PoolLimits` does.
        """
        limits = self._hub.limits
        least = limits.min_connections if min_connections is None else min_connections
        most = limits.max_connections if max_connections is None else max_connections
        self._hub.resize(attrs.evolve(limits, min_connections=least, max_connections=most))

    def recycle(self) -> None:
        """Replace every connection, for new addresses or certificates. Calls in flight end where they are."""
        self._hub.recycle()

    async def check(self) -> None:
        """Test every connection now. Returns when each has answered, or was lost and is being replaced.

        Bounded by `validate_timeout`.
        """
        await self._hub.check()

    def suspend(self) -> None:
        """Begin no further calls: they wait, without their `acquire_timeout` running, until `resume`."""
        self._hub.suspend()

    def resume(self) -> None:
        """Go on after `suspend`; no harm without."""
        self._hub.resume()

    async def drain(self, grace: float | None = 10.0) -> None:
        """Close without losing anything: new calls raise PoolClosed, those in line and in flight are finished.

        What still runs after `grace` seconds (None: never) is cancelled, as by `aclose`. Returns when everything is
        gone. Raises TypeError or ValueError, and closes nothing, for what is no number of seconds.
        """
        seconds = checked_grace(grace)
        try:
            with trio.move_on_after(seconds):
                await self._hub.drain()
        finally:  # Cancelled, it closes at once.
            self._hub.close_soon()
        await self._wait_closed()

    async def aclose(self) -> None:
        """Close the pool, from any task; returns when everything is gone. Idempotent.

        Calls in flight are cancelled and joined, each bounded by its `cancel_wait`; they, and calls that wait for a
        place, raise PoolClosed with their own `may_have_run`.
        """
        self._hub.close_soon()
        await self._wait_closed()

    async def _wait_closed(self) -> None:
        # Bounded by cancel_wait and close_timeout. A task that the closing has to end must not wait for it shielded.
        keeper = self._hub.keeper
        with trio.CancelScope(shield=not keeper.owns(trio.lowlevel.current_task())):
            await keeper.closed.wait()
        await trio.lowlevel.checkpoint_if_cancelled()


class EndpointTarget(Target):
    """One endpoint of a pool, as something to call: `pool.endpoints` gives them.

    Its calls go there and nowhere else, even while balancing leaves it out.
    """

    def __init__(self, hub: Hub, upstream: Upstream) -> None:
        super().__init__(hub.make_caller(self.__repr__, partial(hub.pick_at, upstream), partial(hub.join_at, upstream)))
        self._hub = hub
        self._upstream = upstream

    def __repr__(self) -> str:
        return f"<EndpointTarget {self.address} of {self._hub.target} ({self.state.value})>"

    @property
    def address(self) -> str:
        """Its address, in the one spelling that the pool goes by."""
        return self._upstream.name

    @property
    def state(self) -> Connectivity:
        """Whether it can be called."""
        return self._upstream.state

    def statistics(self) -> EndpointStatistics:
        """A snapshot; cheap."""
        return self._hub.balancer.statistics(self._upstream)


@asynccontextmanager
@trio.lowlevel.enable_ki_protection  # Here, and not in the block: a pool that has begun is closed in any case.
async def keep_open(make: Callable[[], Hub]) -> AsyncIterator[Pool]:
    """Make a pool and run it, for the length of a block."""
    hub = make()
    pool = Pool(hub)
    async with hidden_nursery(cancel=False) as nursery:
        try:
            hub.begin(nursery)
            await trio.lowlevel.checkpoint_if_cancelled()
            yield pool
        finally:
            hub.close_soon()  # The nursery waits for its end.
