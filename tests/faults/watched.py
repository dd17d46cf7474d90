"""Connections that are watched for the moment at which they are given up, on either side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio

import trio_rpc
from tests.faults.namespaces import SERVER, Direction, Pair

__all__ = ["Loss", "Naps", "Watched", "cut", "open_watched", "watch_client", "watch_server"]

LOOK: Final = 0.01
"""Seconds between two looks at a server, which tells nobody that it has lost a client who made no calls."""

SETTLE: Final = 0.02
"""Seconds in which calls that were begun have been sent."""


@dataclass(frozen=True)
class Loss:
    """When a side had given a connection up, with all that was under way there, and how it knew."""

    at: float
    """On Trio's clock."""
    by_silence: bool
    """By the heartbeat; else the other side's end, or the network's, was seen."""


class Naps:
    """Calls that last as long as their caller."""

    def __init__(self) -> None:
        self.napping: int = 0
        self.ended_at: float = 0.0
        """When the last one did."""

    @trio_rpc.method
    async def echo(self, value: Any) -> Any:
        return value

    @trio_rpc.method
    async def nap(self) -> None:
        self.napping += 1
        try:
            await trio.sleep_forever()
        finally:
            self.napping -= 1
            self.ended_at = trio.current_time()


async def watch_client(
    pool: trio_rpc.Pool,
    naps: Sequence[Callable[[], Awaitable[object]]],
    losses: list[Loss],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Make these calls of a `Naps`, and note when the connection has been lost and all of them have failed with it.

    It has started once the calls have arrived.
    """
    failures: list[trio_rpc.RpcError] = []

    async def make(nap: Callable[[], Awaitable[object]]) -> None:
        try:
            await nap()
        except trio_rpc.RpcError as exc:
            failures.append(exc)

    cause: BaseException | None = None
    async with pool.events() as events:
        async with trio.open_nursery() as nursery:
            for nap in naps:
                nursery.start_soon(make, nap)
            await trio.sleep(SETTLE)
            await pool.call("Naps.echo", "behind them")
            task_status.started()
            async for event in events:
                if event.kind == "lost":
                    cause = event.error
                    break
        at = trio.current_time()
    assert len(failures) == len(naps)
    assert all(type(failure) is type(cause) and failure.may_have_run for failure in failures), failures
    losses.append(Loss(at, isinstance(cause, trio_rpc.PeerUnresponsive)))


async def watch_server(server: trio_rpc.Server, naps: Naps, losses: list[Loss]) -> None:
    """Note when the server has given up its one client, and ended all handlers for it."""
    had_calls, evicted = naps.napping > 0, server.statistics().evicted
    while naps.napping or server.statistics().connections:  # noqa: ASYNC110 - there is no event
        await trio.sleep(LOOK)
    at = trio.current_time()
    assert naps.napping == 0
    losses.append(Loss(naps.ended_at if had_calls else at, server.statistics().evicted > evicted))


@dataclass
class Watched:
    """One connection between two machines, watched on both sides."""

    pool: trio_rpc.Pool
    server: trio_rpc.Server
    service: Naps
    calls: int
    port: int
    client_losses: list[Loss] = field(default_factory=list)
    server_losses: list[Loss] = field(default_factory=list)

    async def watch(self, nursery: trio.Nursery) -> None:
        """Make the calls, and have the client watched from now on; returns when all of that is under way."""
        await nursery.start(watch_client, self.pool, [self._nap] * self.calls, self.client_losses)
        assert self.service.napping == self.calls

    async def _nap(self) -> None:
        await self.pool.call("Naps.nap")


async def cut(pair: Pair, direction: Direction, watched: Sequence[Watched], wait: float) -> float:
    """Lose what goes in this direction, `wait` seconds after the last byte, and have both sides notice; when it was."""
    async with trio.open_nursery() as nursery:
        for each in watched:
            await each.watch(nursery)
        await trio.sleep(wait)
        at = trio.current_time()
        pair.drop(direction, *(each.port for each in watched))
        for each in watched:
            nursery.start_soon(watch_server, each.server, each.service, each.server_losses)
    return at


@asynccontextmanager
async def open_watched(pair: Pair, port: int, heartbeat: trio_rpc.Heartbeat, *, calls: int) -> AsyncIterator[Watched]:
    """One connection with so many calls in flight, both sides at this heartbeat. The run's names are the pair's."""
    service = Naps()
    async with AsyncExitStack() as stack:
        with pair.server.sockets():
            address = f"tcp://{pair.server.ip}:{port}"
            opening = trio_rpc.open_server(service, address, heartbeat=heartbeat, allow_insecure=True)
            server = await stack.enter_async_context(opening)
        stack.enter_context(pair.client.sockets())
        pool = await stack.enter_async_context(trio_rpc.open_pool(f"tcp://{SERVER}:{port}", heartbeat=heartbeat))
        await pool.connect()
        yield Watched(pool, server, service, calls, port)
