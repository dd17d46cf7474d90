"""Where servers live, one after another."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import trio

import trio_rpc
from trio_rpc.health import HealthService, Status

from .journal import Journal
from .network import Host, Listener
from .plan import Server

__all__ = ["Site"]


class Site:
    """One host, and its servers. `make_service` makes what the next one serves."""

    def __init__(
        self, name: str, plan: Server, codec: str, rng: Random, make_service: Callable[[], object], journal: Journal
    ) -> None:
        self.host = Host(name)
        self.servers: list[trio_rpc.Server] = []
        """All that have lived here."""
        self.nursery: trio.Nursery
        self._plan, self._codec, self._rng = plan, codec, rng
        self._make_service, self._journal = make_service, journal
        self._listener: Listener
        self._health: HealthService
        self._life: trio.CancelScope

    async def start(self) -> None:
        """Begin a new life."""
        listener, health, life = self.host.listen(), HealthService(), trio.CancelScope()
        server: trio_rpc.Server = await self.nursery.start(self._serve, listener, health, life)
        server.rng = self._rng.random
        self.servers.append(server)
        self._listener, self._health, self._life = (
            listener,
            health,
            life,
        )  # Not before: what is not born yet is not killed.
        self._journal.note("serving", self.host.name)

    async def _serve(
        self,
        listener: Listener,
        health: HealthService,
        life: trio.CancelScope,
        task_status: trio.TaskStatus[trio_rpc.Server],
    ) -> None:
        with life:
            await trio_rpc.serve(
                [self._make_service(), health],
                listener,
                limits=self._plan.limits,
                heartbeat=self._plan.heartbeat,
                adaptive=self._plan.adaptive,
                codecs=[self._codec],
                task_status=task_status,
            )

    async def drain(self, grace: float, pause: float | None) -> None:
        """End a life in peace; the next one begins before it, or after."""
        old, health = self.servers[-1], self._health
        if pause is None:
            await self.start()
        health.shut_down()
        await old.drain(grace)
        self._journal.note("drained", self.host.name)
        await self._start_after(pause or 0.0)

    async def ail(self, seconds: float) -> None:
        """Say for a while that calls had better go elsewhere."""
        health = self._health
        health.set("", Status.NOT_SERVING)
        await trio.sleep(seconds)
        health.set("", Status.SERVING)

    async def kill(self, pause: float) -> None:
        """End a life at once; the next one begins after a while."""
        for link in self._listener.links:
            if not link.pipes[1].lost:  # Else the news is lost as well.
                link.reset()
        await self._listener.aclose()
        self._life.cancel()
        await self._start_after(pause)

    async def _start_after(self, pause: float) -> None:
        await trio.sleep(pause)
        if self.host.listener is None:
            await self.start()
