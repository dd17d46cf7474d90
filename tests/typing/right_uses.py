"""Checked by mypy and pyright, never run: what users write, and the types that it has."""

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Protocol, TypeVar, assert_type

import attrs
import trio

from trio_rpc import Pool, method, service

T = TypeVar("T")


@attrs.frozen
class Level:
    sku: str
    quantity: int


class OutOfStock(Exception):
    pass


class Inventory:
    @method(idempotent=True)
    async def stock(self, sku: str) -> int:
        raise NotImplementedError

    @method(raises=[OutOfStock])
    async def reserve(self, sku: str, quantity: int = 1) -> str:
        raise NotImplementedError

    @method
    def version(self) -> str:
        raise NotImplementedError

    @method(thread=True)
    def digest(self) -> bytes:
        raise NotImplementedError

    @method
    def watch(self, sku: str) -> AsyncGenerator[Level, None]:
        raise NotImplementedError

    @method
    async def restock(self, levels: AsyncIterable[Level]) -> int:
        raise NotImplementedError

    @method(idempotent=True)
    def audit(self, claims: AsyncIterable[Level]) -> AsyncIterator[Level]:
        raise NotImplementedError


@service(name="warehouse", version="1")
@attrs.define
class WarehouseInventory(Inventory):
    factor: int

    @method
    async def stock(self, sku: str, shelf: int = 0) -> int:
        return await super().stock(sku) + shelf

    @method
    async def version(self) -> str:
        return "1"

    @method
    async def watch(self, sku: str) -> AsyncGenerator[Level, None]:
        async with super().watch(sku) as levels:
            assert_type(levels, trio.abc.ReceiveChannel[Level])
            async for level in levels:
                yield level

    @method
    async def restock(self, levels: AsyncIterable[Level]) -> int:
        return sum([level.quantity async for level in levels])

    @method
    async def audit(self, claims: AsyncIterable[Level]) -> AsyncGenerator[Level, None]:
        async for claim in claims:
            yield claim


async def offers() -> AsyncGenerator[Level, None]:
    """Yield the items of a stream."""
    yield Level("A-1", 1)


async def use(inventory: Inventory) -> None:
    """Use a stub or a local object: one type."""
    assert_type(await inventory.stock("A-1"), int)
    assert_type(await inventory.reserve("A-1", quantity=2), str)
    assert_type(await inventory.version(), str)
    assert_type(await inventory.digest(), bytes)
    assert_type(inventory.watch("A-1"), AbstractAsyncContextManager[trio.abc.ReceiveChannel[Level]])
    async with inventory.watch(sku="A-1") as levels:
        assert_type(await levels.receive(), Level)
        async for level in levels:
            assert_type(level, Level)
    assert_type(await inventory.restock(offers()), int)
    send, receive = trio.open_memory_channel[Level](0)
    await send.aclose()
    assert_type(await inventory.restock(receive), int)
    async with inventory.audit(offers()) as audited:
        assert_type(await audited.receive(), Level)


async def use_all(pool: Pool) -> None:
    """The contract's stub, the implementation's stub, and the object."""
    assert_type(pool.stub(Inventory), Inventory)
    await use(pool.stub(Inventory))
    await use(WarehouseInventory(2))
    assert_type(await pool.stub(WarehouseInventory).stock("A-1", shelf=2), int)


class Quotes(Protocol):
    @method
    async def price(self, symbol: str) -> float: ...

    @method
    def ticks(self, symbol: str) -> AsyncIterator[float]: ...


class Fixed(Quotes):
    @method
    async def price(self, symbol: str) -> float:
        return 1.0

    @method
    async def ticks(self, symbol: str) -> AsyncGenerator[float, None]:
        yield await self.price(symbol)


class Base(abc.ABC):
    @method
    @abc.abstractmethod
    async def ping(self) -> None: ...

    @method
    def later(self) -> Coroutine[Any, Any, int]:
        raise NotImplementedError


class Store(Generic[T]):
    @method
    async def get(self, key: str) -> T | None:
        raise NotImplementedError

    @method
    def scan(self) -> AsyncGenerator[T, None]:
        raise NotImplementedError


class IntStore(Store[int]):
    @method
    async def get(self, key: str) -> int | None:
        return 1


async def use_others(pool: Pool) -> None:
    """Protocols, abstract classes and generics are contracts too."""
    assert_type(await pool.stub(Quotes).price("ACME"), float)
    await use_quotes(Fixed())
    assert_type(await pool.stub(Base).later(), int)
    assert_type(await pool.stub(Store[int]).get("key"), int | None)
    async with IntStore().scan() as numbers:
        assert_type(await numbers.receive(), int)


async def use_quotes(quotes: Quotes) -> None:
    """Take any implementation of the Protocol."""
    async with quotes.ticks("ACME") as ticks:
        assert_type(await ticks.receive(), float)
