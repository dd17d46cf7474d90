# type: ignore  # noqa: PGH003
"""Checked by mypy and pyright, never run: each line marked as wrong must be refused, with the text of the mark.

The first line keeps this file out of the project's own checks; the test takes it away.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable

import trio

from tests.typing.right_uses import Inventory, Level, Quotes, Store, offers
from trio_rpc import Pool, method, service


async def wrong_calls(pool: Pool, inventory: Inventory) -> None:
    """Use a stub or a local object in ways that fail when run."""
    await inventory.stock(1)  # wrong: "str"
    await inventory.stock()  # wrong: "sku"
    await inventory.stock("A-1", 2)  # wrong: argument
    await inventory.stock("A-1", shelf=1)  # wrong: "shelf"
    await inventory.stocks("A-1")  # wrong: "stocks"
    ticket: int = await inventory.reserve("A-1")  # wrong: "str"
    count: int = inventory.stock("A-1")  # wrong: Coroutine
    inventory.version().upper()  # wrong: "upper"
    await pool.stub(Inventory).reserve("A-1", quantity="2")  # wrong: "int"
    print(ticket, count)


async def wrong_streams(inventory: Inventory) -> None:
    """Use streams without their block, or with the wrong items."""
    async for level in inventory.watch("A-1"):  # wrong: __aiter__
        print(level)
    await inventory.watch("A-1")  # wrong: await
    with inventory.watch("A-1") as levels:  # wrong: __enter__
        print(levels)
    async with inventory.watch("A-1") as levels:
        text: str = await levels.receive()  # wrong: "Level"
        await levels.send(Level("A-1", 1))  # wrong: "send"
    await inventory.restock([Level("A-1", 1)])  # wrong: AsyncIterable
    await inventory.restock(Level("A-1", 1))  # wrong: AsyncIterable
    send, receive = trio.open_memory_channel[int](0)
    await inventory.restock(receive)  # wrong: AsyncIterable[Level]
    async with inventory.audit(levels=offers()) as audited:  # wrong: "levels"
        await audited.receive()
    print(text, send)


async def wrong_generics(pool: Pool) -> None:
    """Lose a type variable."""
    value: str = await pool.stub(Store[int]).get("key")  # wrong: int | None
    await pool.stub(Quotes).price(1)  # wrong: "str"
    print(value)


class WrongOverrides(Inventory):
    @method
    async def stock(self, sku: int) -> int:  # wrong: "stock"
        return 1

    @method
    async def reserve(self, sku: str, quantity: int = 1) -> int:  # wrong: "reserve"
        return 1

    @method
    async def watch(self, sku: str) -> list[Level]:  # wrong: "watch"
        return []

    @method
    async def restock(self, levels: AsyncIterable[int]) -> int:  # wrong: "restock"
        return 1

    @method
    async def audit(self, claims: AsyncIterable[Level]) -> AsyncGenerator[int, None]:  # wrong: "audit"
        yield 1

    async def version(self) -> int:  # wrong: "version"
        return 1


class WrongOptions:
    @method(raises=[int])  # wrong: type[int]
    async def one(self) -> None: ...

    @method(raises=ValueError)  # wrong: ValueError
    async def two(self) -> None: ...

    @method(idempotent="yes")  # wrong: method
    async def three(self) -> None: ...

    @method(retries=3)  # wrong: method
    async def four(self) -> None: ...

    @method(True)  # wrong: method
    async def five(self) -> None: ...


@service(name=3)  # wrong: service
class WrongName:
    pass
