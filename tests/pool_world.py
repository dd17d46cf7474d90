"""A server and a pool in one process, over memory: the stage of what is told of pools."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

import trio_rpc
from tests.scripted import watchdog
from trio_rpc import Backoff, ConnectError, PoolLimits, PoolStatistics, method
from trio_rpc.testing import FaultyStream, MemoryListener

QUIET = trio_rpc.Heartbeat(interval=None)
NO_JITTER = Backoff(jitter=0)


class Desk:
    """Serves, and keeps count of what it does at once."""

    def __init__(self) -> None:
        self.order: list[Any] = []
        self.running = self.peak = self.stopped = 0

    @method
    async def echo(self, value: Any) -> Any:
        self.order.append(value)
        return value

    @method
    async def hold(self, seconds: float) -> float:
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self.stopped += 1
            raise
        finally:
            self.running -= 1
        return seconds

    @method
    async def fail(self) -> None:
        raise ValueError("as it should")

    @method
    async def count(self, upto: int) -> AsyncGenerator[int, None]:
        for number in range(upto):
            yield number


class Dialler:
    """Connects to a listener in `takes` seconds, or fails the way it is told to; notes when it was asked."""

    def __init__(self, listener: MemoryListener, takes: float = 0.0, *errors: Exception) -> None:
        self.listener = listener
        self.takes = takes
        self.errors = deque(errors)
        self.failing: Exception | None = None
        self.at: list[float] = []

    async def dial(self) -> trio.abc.Stream:
        self.at.append(trio.current_time())
        await trio.sleep(self.takes)
        if self.errors:
            raise self.errors.popleft()
        if self.failing is not None:
            raise self.failing
        return await self.listener.connect()


@attrs.define
class World:
    pool: trio_rpc.Pool
    desk: Desk
    dialler: Dialler
    server: trio_rpc.Server
    listener: MemoryListener

    @property
    def stub(self) -> Desk:
        return self.pool.stub(Desk)

    @property
    def stats(self) -> PoolStatistics:
        return self.pool.statistics()


@asynccontextmanager
async def open_world(
    takes: float = 0.0,
    *errors: Exception,
    heartbeat: trio_rpc.Heartbeat = QUIET,
    faults: tuple[Any, ...] = (),
    server_limits: trio_rpc.ServerLimits | None = None,
    options: Mapping[str, Any] | None = None,
    **limits: Any,
) -> AsyncIterator[World]:
    """A server and a pool; the pool's limits are given by name, without jitter unless asked for."""
    listener = MemoryListener(wrap=lambda stream: FaultyStream(stream, *faults) if faults else stream)
    desk, dialler = Desk(), Dialler(listener, takes, *errors)
    limits.setdefault("connect_backoff", NO_JITTER)
    async with (
        watchdog(),
        trio_rpc.open_server(
            desk, listener, heartbeat=QUIET, limits=server_limits or trio_rpc.ServerLimits()
        ) as server,
        trio_rpc.open_pool(dialler.dial, limits=PoolLimits(**limits), heartbeat=heartbeat, **(options or {})) as pool,
    ):
        yield World(pool, desk, dialler, server, listener)


async def refused() -> trio.abc.Stream:
    """A target at which nobody listens."""
    raise ConnectError("connection refused")
