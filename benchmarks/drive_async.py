"""Drives the blocks of a peer with async functions, on Trio, asyncio or uvloop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import TypeVar, cast

from .measure import Client, Command, Latencies, Meter, Sample, Window, memory_now, memory_sample, stream_length
from .peers import AsyncCall, Peer, Runtime
from .workloads import MIB

__all__ = ["drive", "run"]

T = TypeVar("T")
now = time.perf_counter
SHORT_RUN = 1000
SETTLE = 0.5
"""Seconds until the memory of connections just opened is read."""


def run(runtime: Runtime, main: Callable[[], Awaitable[T]]) -> T:
    """Run an async function on that event loop. What is not needed is not imported: it may not be installed."""
    if runtime == "trio":
        import trio  # noqa: PLC0415

        return trio.run(main)
    if runtime == "uvloop":
        return cast("T", import_module("uvloop").run(main()))
    return asyncio.run(main())  # type: ignore[arg-type]


async def together(runtime: Runtime, functions: list[Callable[[], Awaitable[None]]]) -> None:
    """Run all of them at once, each in a task of its own."""
    if runtime == "trio":
        import trio  # noqa: PLC0415

        async with trio.open_nursery() as nursery:
            for function in functions:
                nursery.start_soon(function)
    else:
        async with asyncio.TaskGroup() as group:
            for function in functions:
                group.create_task(function())  # type: ignore[arg-type]


async def sleep(runtime: Runtime, seconds: float) -> None:
    """Sleep, on either loop."""
    if runtime == "trio":
        import trio  # noqa: PLC0415

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


def drive(peer: Peer, client: Client, command: Command) -> Sample:
    """One round."""
    kind = client.setting.kind
    return run(peer.runtime, lambda: DRIVERS[kind](peer, client, command))


async def unary(peer: Peer, client: Client, command: Command) -> Sample:
    """Callers in loops, for the length of the window."""
    async with peer.unary() as calls:
        return await in_window(peer, calls, client, command)


async def shared_link(peer: Peer, client: Client, command: Command) -> Sample:
    """Callers alone, then beside other load."""
    async with peer.shared_link() as (calls, load):
        alone = await in_window(peer, calls, client, command)
        beside = await in_window(peer, calls, client, command, load)
        return replace(beside, slowdown=beside.p99 / alone.p99 if beside.p99 and alone.p99 else None)


async def in_window(
    peer: Peer, calls: list[AsyncCall], client: Client, command: Command, load: AsyncCall | None = None
) -> Sample:
    """One window with all callers in their loops, and beside them the load."""
    window = Window.of(client, command)
    seconds = command.warm_up + command.seconds
    tasks = [in_loop(peer, call, window, window.caller(), seconds) for call in calls]
    if load is not None:
        tasks.append(partial(load, seconds))
    await together(peer.runtime, tasks)
    return window.sample()


def in_loop(
    peer: Peer, call: AsyncCall, window: Window, latencies: Latencies, seconds: float
) -> Callable[[], Awaitable[None]]:
    """A caller: calls until the window closes."""

    async def caller() -> None:
        with peer.ambient(seconds):
            await until_closed(call, window, latencies)

    return caller


async def until_closed(call: AsyncCall, window: Window, latencies: Latencies, argument: bytes | None = None) -> None:
    """The loop of a caller."""
    opens, closes, i = window.opens, window.closes, 0
    while now() < opens:
        await call(i if argument is None else argument)
        i += 1
    window.start()
    start = now()
    while start < closes:
        await call(i if argument is None else argument)
        end = now()
        latencies.append(end - start)
        start = end
        i += 1


async def large(peer: Peer, client: Client, command: Command) -> Sample:
    """One caller and a large message."""
    data = bytes(bytearray(range(256)) * (client.setting.size // 256 + 1))[: client.setting.size]
    async with peer.large() as call:
        window = Window.of(client, command)
        with peer.ambient(command.warm_up + command.seconds):
            await until_closed(call, window, window.caller(), data)
        return window.sample(per_call=len(data) / MIB)


async def stream(peer: Peer, client: Client, command: Command) -> Sample:
    """One run of a stream, as long as the window."""
    meter = Meter(client)
    async with getattr(peer, client.setting.kind)() as items:
        await items(SHORT_RUN // 10)
        count, lengths = SHORT_RUN, [max(command.warm_up, 0.1), command.seconds]
        while True:
            meter.start()
            await items(count)
            meter.stop()
            if not lengths:
                return meter.sample(count)
            count = stream_length(count, meter.elapsed, lengths.pop(0))


async def short(peer: Peer, client: Client, command: Command) -> Sample:
    """One caller, and a connection for each call."""
    async with peer.short() as call:
        window = Window.of(client, command)
        with peer.ambient(command.warm_up + command.seconds):
            await until_closed(call, window, window.caller())
        return window.sample()


async def idle(peer: Peer, client: Client, command: Command) -> Sample:
    """Connections that have had their only call; a few are opened before, so that what is shared does not count."""
    start = now()
    async with peer.idle() as open_one:
        for _ in range(5):
            await open_one()
        await sleep(peer.runtime, SETTLE)
        before = memory_now(client)
        for _ in range(command.connections):
            await open_one()
        await sleep(peer.runtime, SETTLE)
        return memory_sample(client, before, command.connections, now() - start)


DRIVERS: dict[str, Callable[[Peer, Client, Command], Awaitable[Sample]]] = {
    "unary": unary,
    "large": large,
    "server_stream": stream,
    "client_stream": stream,
    "bidi": stream,
    "short": short,
    "idle": idle,
    "shared_link": shared_link,
}
