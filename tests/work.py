"""What there is to do, in units, for a service and its callers; `counting` tells what each unit costs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

import trio

import trio_rpc
from tests.counting import Ends, Use
from trio_rpc import method

__all__ = [
    "Desk",
    "calls",
    "calls_with_deadline",
    "count_items",
    "crowd",
    "early_visits",
    "large",
    "long",
    "mirror_items",
    "short",
    "suspending_calls",
    "total_items",
    "visits",
]

CALLERS = 64
KILO = 1000


class Desk:
    @method
    async def echo(self, value: Any) -> Any:
        return value

    @method(idempotent=True)
    async def look(self, value: Any) -> Any:
        return value

    @method
    async def pause(self, value: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return value

    @method
    async def store(self, data: bytes) -> bytes:
        return data

    @method
    async def count_up(self, count: int) -> AsyncGenerator[int, None]:
        for number in range(count):
            yield number

    @method
    async def total(self, numbers: AsyncIterable[int]) -> int:
        return sum([number async for number in numbers])

    @method
    async def mirror(self, numbers: AsyncIterable[int]) -> AsyncGenerator[int, None]:
        async for number in numbers:
            yield number


async def calls(ends: Ends, count: int) -> None:
    """One caller, one call after the other."""
    desk = ends.pool.stub(Desk)
    for number in range(count):
        assert await desk.echo({"number": number}) == {"number": number}


async def calls_with_deadline(ends: Ends, count: int) -> None:
    """The same within one scope of the caller's."""
    with trio.fail_after(60):
        await calls(ends, count)


async def suspending_calls(ends: Ends, count: int) -> None:
    """One caller of a handler that awaits something."""
    desk = ends.pool.stub(Desk)
    for number in range(count):
        assert await desk.pause(number) == number


def crowd(use: Use) -> Use:
    """64 callers at once; a unit is a call of each."""

    async def together(ends: Ends, count: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(CALLERS):
                nursery.start_soon(use, ends, count)

    return together


async def numbers_up_to(count: int) -> AsyncGenerator[int, None]:
    """Items that need no waiting for."""
    for number in range(count):
        yield number


async def count_items(ends: Ends, items: int) -> None:
    """One stream from the server."""
    async with ends.pool.stub(Desk).count_up(items) as numbers:
        assert sum([number async for number in numbers]) == sum(range(items))


async def total_items(ends: Ends, items: int) -> None:
    """One stream from the client."""
    assert await ends.pool.stub(Desk).total(numbers_up_to(items)) == sum(range(items))


async def mirror_items(ends: Ends, items: int) -> None:
    """One stream each way."""
    async with ends.pool.stub(Desk).mirror(numbers_up_to(items)) as numbers:
        assert sum([number async for number in numbers]) == sum(range(items))


def long(use: Use) -> Use:
    """One stream; a unit is 1000 items of it."""
    return lambda ends, count: use(ends, KILO * count)


def short(use: Use) -> Use:
    """One stream of a single item after the other."""

    async def one_by_one(ends: Ends, count: int) -> None:
        for _ in range(count):
            await use(ends, 1)

    return one_by_one


def large(size: int) -> Use:
    """One caller whose payload is as large as this, both ways."""

    async def echoes(ends: Ends, count: int) -> None:
        data = bytes(size)
        for _ in range(count):
            assert len(await ends.pool.stub(Desk).store(data)) == size
            await trio.lowlevel.checkpoint()  # What this call has freed must not hide what the next one allocates.

    return echoes


async def visits(ends: Ends, count: int) -> None:
    """Connect, make a call, close."""
    for _ in range(count):
        async with trio_rpc.open_pool(ends.address) as pool:
            await pool.stub(Desk).echo(1)


async def early_visits(ends: Ends, count: int) -> None:
    """The same, with a call that goes right behind the HELLO."""
    for _ in range(count):
        async with trio_rpc.open_pool(ends.address) as pool:
            await pool.stub(Desk).look(1)
