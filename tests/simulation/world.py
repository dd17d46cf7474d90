"""The world of one plan: it lives through the steps, and then through a quiet phase, in which all must work again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from random import Random
from typing import Any
from unittest import mock

import trio

import trio_rpc
from trio_rpc import Endpoint, EndpointTarget, RpcError, _open_pool
from trio_rpc._address import Address

from .calling import Outcome, make_call
from .drawing import LONGEST, ORPHAN_WINDOW
from .journal import Journal
from .network import End, Path
from .plan import (
    Ail,
    Call,
    Client,
    Close,
    Cut,
    Drain,
    Freeze,
    Kill,
    LinkFault,
    Lose,
    Plan,
    Refuse,
    Resolve,
    Slow,
    Step,
    Tend,
)
from .service import CalledBack, Declined, Ledger, Simulated, Spoilt
from .sites import Site

__all__ = ["World"]

FOREVER = 1000.0
"""Virtual seconds that no plan takes: then something waits that nothing will ever wake."""
SERVER_COUNTS = ("connections", "handshaking", "in_flight", "calling_back", "keyed_in_flight")


class Resolver:
    """Yields the endpoints of the moment, whenever they change; raises while there are none (None)."""

    def __init__(self, endpoints: list[Endpoint] | None) -> None:
        self._endpoints = endpoints
        self._changed = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return "Resolver"

    def set(self, endpoints: list[Endpoint] | None) -> None:
        """Let these be the endpoints."""
        self._endpoints = endpoints
        self._changed.unpark_all()

    async def __aiter__(self) -> AsyncIterator[list[Endpoint]]:
        while self._endpoints is not None:
            yield self._endpoints
            await self._changed.park()
        raise OSError("the resolver does not answer")


class World:
    """Everything of one run, and what was seen of it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.journal = Journal()
        self.ledger = Ledger(self.journal)
        self.outcomes: dict[int, list[Outcome]] = {}
        self.faults: list[str] = []
        """What did not hold."""
        self._sites = [
            Site(f"s{number}", server, plan.codec, self._rng(f"s{number}"), self._make_service, self.journal)
            for number, server in enumerate(plan.servers)
        ]
        self._paths = {
            (client, server): Path(f"c{client}{site.host.name}", site.host, plan.clients[client].capacity, self.journal)
            for client in range(len(plan.clients))
            for server, site in enumerate(self._sites)
        }
        self._pools: list[trio_rpc.Pool] = []
        self._resolvers = [
            Resolver(self._endpoints(number, client.servers)) for number, client in enumerate(plan.clients)
        ]
        self._lives = 0
        self._acts: trio.Nursery

    def _rng(self, name: str) -> Random:
        return Random(f"{self.plan.seed} {name}")

    def _make_service(self) -> Simulated:
        self._lives += 1
        return Simulated(self.ledger, self._lives)

    def _endpoints(self, client: int, servers: tuple[int, ...]) -> list[Endpoint]:
        return [Endpoint(f"tcp://{self._paths[client, server].name}:1", weight=1.0 + server) for server in servers]

    async def _dial(self, address: Address, *_options: Any) -> End:
        """What the library dials with, here."""
        (path,) = [path for path in self._paths.values() if path.name == address.host]
        return await path.dial()

    # -- life ------------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """From the first step to the end of everything."""
        with mock.patch.object(_open_pool, "dial", self._dial):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._bark)
                for site in self._sites:
                    site.nursery = nursery
                    await site.start()
                async with AsyncExitStack() as stack:
                    for number in range(len(self.plan.clients)):
                        pool = await stack.enter_async_context(self._open_pool(number))
                        self._pools.append(pool)
                        nursery.start_soon(self._watch, f"c{number}", pool)
                    async with trio.open_nursery() as self._acts:
                        for step in self.plan.steps:
                            self._acts.start_soon(self._act, step)
                    await self._check_all_works()
                for pool in self._pools:
                    await self._check_is_empty(pool, "connections", "dialling", "in_flight", "waiting", "orphans")
                for server in [server for site in self._sites for server in site.servers]:
                    await self._check_is_empty(server, *SERVER_COUNTS)
                self._expect(not any(self.ledger.running.values()), "handlers run on")
                nursery.cancel_scope.cancel()

    async def _bark(self) -> None:
        await trio.sleep(FOREVER)
        unfinished = [number for number, outcomes in self.outcomes.items() if not outcomes]
        raise AssertionError(f"something waits for ever; calls that have not ended: {unfinished}")

    @asynccontextmanager
    async def _open_pool(self, number: int) -> AsyncGenerator[trio_rpc.Pool, None]:
        client = self.plan.clients[number]
        for server in range(len(self._sites)):
            self._paths[number, server].set_weather(client.latency)
        async with trio_rpc.open_pool(
            self._resolvers[number] if client.resolved else self._endpoints(number, client.servers),
            codec=self.plan.codec,
            limits=client.limits,
            heartbeat=client.heartbeat,
            retry=client.retry,
            hedge=client.hedge,
            balance=client.balance,
            ejection=client.ejection,
            breaker=client.breaker,
            health_check="" if client.checks_health else None,
            on_connect=_prepare if client.prepares else None,
            services=CalledBack(self.ledger) if client.serves else (),
        ) as pool:
            pool.rng = self._rng(f"c{number}").random
            yield pool

    async def _watch(self, name: str, pool: trio_rpc.Pool) -> None:
        async with pool.events() as events:
            async for event in events:
                self.journal.note(name, event.kind, event.endpoint or "", event.detail[:100])

    # -- steps -----------------------------------------------------------------------------------------------------

    async def _act(self, step: Step) -> None:
        await trio.sleep(step.at)
        self.journal.note(step)
        match step:
            case Call():
                await self._call(step)
            case Freeze() | Slow() | Lose() | Cut():
                await self._hit(self._paths[step.client, step.server], step)
            case Refuse(_, server, seconds, silent):
                self._sites[server].host.refuse(seconds, silent=silent)
            case Drain(_, server, grace, pause):
                await self._sites[server].drain(grace, pause)
            case Kill(_, server, seconds):
                await self._sites[server].kill(seconds)
            case Ail(_, server, seconds):
                await self._sites[server].ail(seconds)
            case Resolve(_, client, servers):
                self._resolvers[client].set(None if servers is None else self._endpoints(client, servers))
            case Tend():
                with contextlib.suppress(trio_rpc.PoolClosed):
                    await self._tend(self._pools[step.client], step)
            case Close(_, client, grace):
                await (self._pools[client].aclose() if grace is None else self._pools[client].drain(grace))

    async def _hit(self, path: Path, fault: LinkFault) -> None:
        match fault:
            case Freeze():
                path.freeze(fault.directions, fault.seconds)
            case Slow():
                path.set_weather(fault.latency, fault.most, fault.pause)
                await trio.sleep(fault.seconds)
                path.set_weather(self.plan.clients[fault.client].latency)
            case Lose():
                path.lose(fault.directions)
            case Cut():
                path.cut(fault.after)

    async def _tend(self, pool: trio_rpc.Pool, step: Tend) -> None:
        match step.what:
            case "recycle":
                pool.recycle()
            case "check":
                await pool.check()
            case "suspend":
                pool.suspend()
                await trio.sleep(step.seconds)
                pool.resume()
            case "resize":
                pool.resize(min_connections=0, max_connections=1)
                await trio.sleep(step.seconds)
                limits = self.plan.clients[step.client].limits
                pool.resize(min_connections=limits.min_connections, max_connections=limits.max_connections)

    async def _call(self, call: Call) -> None:
        """One call, and exactly one outcome of it."""
        outcomes = self.outcomes[call.number] = []
        began = trio.current_time()

        def end(kind: str, value: Any = None) -> None:
            outcomes.append(Outcome(kind, value, trio.current_time() - began))
            self.journal.note("outcome", call.number, kind, repr(value)[:200])

        with trio.CancelScope(deadline=math.inf if call.deadline is None else began + call.deadline) as scope:
            if call.cancelled_after is not None:
                self._acts.start_soon(self._cancel_after, call.cancelled_after, scope)
            try:
                end(*await make_call(self._pools[call.client], call))
            except Declined as exc:
                end("result", str(exc))
            except Spoilt:
                end("spoilt")
            except RpcError as exc:
                end("error", [exc])
        if scope.cancelled_caught:
            end("cancelled")

    @staticmethod
    async def _cancel_after(seconds: float, scope: trio.CancelScope) -> None:
        if seconds:
            await trio.sleep(seconds)
        scope.cancel()

    # -- the quiet phase -------------------------------------------------------------------------------------------

    async def _check_all_works(self) -> None:
        """A new call succeeds soon, there is room for as many as there should be, and nothing is left of the old ones."""
        self.journal.note("quiet")
        self._calm()
        closed = {step.client for step in self.plan.steps if isinstance(step, Close)}
        open_ = [number for number in range(len(self._pools)) if number not in closed]
        async with trio.open_nursery() as nursery:
            for number in open_:
                nursery.start_soon(self._check_works_again, self._pools[number])
        for number in open_:
            client, pool = self.plan.clients[number], self._pools[number]
            await pool.check()  # A call on a connection that is lost would meet the others, and not learn that it has.
            await self._check_is_empty(
                pool, "waiting", "orphans", "serving", *([] if client.checks_health else ["in_flight"])
            )
            for endpoint in pool.endpoints:
                await self._check_room(client, endpoint)

    def _calm(self) -> None:
        """All faults end; what was lost stays lost."""
        for (client, _), path in self._paths.items():
            path.set_weather(self.plan.clients[client].latency)
            path.calm()
        for site in self._sites:
            site.host.refuse(0.0, silent=False)

    async def _check_works_again(self, pool: trio_rpc.Pool) -> None:
        bound = 2 * self.plan.patience
        with trio.move_on_after(bound) as scope:
            await _succeed(pool.stub(Simulated, wait_for_ready=True).ping)
        self._expect(not scope.cancelled_caught, f"no call succeeds within {bound} s of the last fault: {pool}")

    async def _check_room(self, client: Client, endpoint: EndpointTarget) -> None:
        """As many calls as there are places for meet there, all at the same time."""
        limits = self.plan.servers[int(endpoint.address.partition("s")[2][0])].limits
        at_once = min(client.limits.max_in_flight, limits.max_in_flight) - client.checks_health
        places = client.limits.max_connections * at_once
        stub = endpoint.stub(Simulated, wait_for_ready=True)
        with trio.move_on_after(2 * self.plan.patience) as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(places):
                    nursery.start_soon(_succeed, partial(stub.meet, places))
        self._expect(not scope.cancelled_caught, f"there are no {places} places any more: {endpoint}")

    async def _check_is_empty(self, party: trio_rpc.Pool | trio_rpc.Server, *names: str) -> None:
        """What was given up ends by itself, and the party counts none of these any more."""
        with trio.move_on_after(self.plan.patience + 2 * LONGEST + ORPHAN_WINDOW) as scope:
            while any(getattr(party.statistics(), name) for name in names):  # noqa: ASYNC110 - nobody tells of each
                await trio.sleep(0.05)
        self._expect(not scope.cancelled_caught, f"something is left in {party.statistics()}")

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.faults.append(otherwise)
            self.journal.note("FAULT", otherwise)


async def _succeed(call: Callable[[], Awaitable[object]]) -> None:
    """Call until it succeeds: a connection may be lost still, or its server may have it end for its age."""
    while True:
        try:
            await call()
            return
        except RpcError:
            await trio.sleep(0.1)


async def _prepare(peer: trio_rpc.Peer) -> None:
    await peer.stub(Simulated).ping()
