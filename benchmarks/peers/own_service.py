"""The contract of our own peer, and its service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any, TypeAlias

import attrs
import trio

import trio_rpc

from ..workloads import Setting
from . import burn, payload

__all__ = ["Benchmark", "Item", "Payload", "Service", "make_wide"]

Payload: TypeAlias = object
"""Any value, checked by the codec alone, as with the peers that have no types; `Item` is the typed one."""


@attrs.frozen
class Item:
    """The payload as a class: checked field by field on both sides."""

    id: int
    name: str
    values: list[int]


class Benchmark:
    """The contract."""

    @trio_rpc.method(idempotent=True)
    async def echo(self, item: Payload) -> Payload:
        """Answer `item`."""
        raise NotImplementedError

    @trio_rpc.method
    async def suspending(self, item: Payload) -> Payload:
        """Answer `item` after a checkpoint."""
        raise NotImplementedError

    @trio_rpc.method
    async def burning(self, item: Payload) -> Payload:
        """Answer `item` after some work."""
        raise NotImplementedError

    @trio_rpc.method
    async def typed(self, item: Item) -> Item:
        """Answer `item`."""
        raise NotImplementedError

    @trio_rpc.method
    async def large(self, data: bytes) -> bytes:
        """Answer `data`."""
        raise NotImplementedError

    @trio_rpc.method
    def numbers(self, count: int) -> AsyncGenerator[Payload, None]:
        """Stream so many payloads."""
        raise NotImplementedError

    @trio_rpc.method
    async def count(self, items: AsyncIterable[Payload]) -> int:
        """Answer how many came."""
        raise NotImplementedError

    @trio_rpc.method
    def mirror(self, items: AsyncIterable[Payload]) -> AsyncGenerator[Payload, None]:
        """Stream back what comes."""
        raise NotImplementedError


class Service(Benchmark):
    """The contract, served."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @trio_rpc.method
    async def echo(self, item: Payload) -> Payload:
        return item

    @trio_rpc.method
    async def suspending(self, item: Payload) -> Payload:
        await trio.lowlevel.checkpoint()
        return item

    @trio_rpc.method
    async def burning(self, item: Payload) -> Payload:
        burn(self.setting.burn)
        return item

    @trio_rpc.method
    async def typed(self, item: Item) -> Item:
        return item

    @trio_rpc.method
    async def large(self, data: bytes) -> bytes:
        return data

    @trio_rpc.method
    async def numbers(self, count: int) -> AsyncGenerator[Payload, None]:
        for i in range(count):
            yield payload(i)

    @trio_rpc.method
    async def count(self, items: AsyncIterable[Payload]) -> int:
        count = 0
        async for _ in items:
            count += 1
        return count

    @trio_rpc.method
    async def mirror(self, items: AsyncIterable[Payload]) -> AsyncGenerator[Payload, None]:
        async for item in items:
            yield item


def make_wide(methods: int) -> type[Any]:
    """A service with so many methods, `method_0` and on, which all echo."""

    def numbered(i: int) -> Any:
        async def echo(self: object, item: Payload) -> Payload:
            return item

        echo.__name__ = f"method_{i}"
        echo.__qualname__ = f"Wide.{echo.__name__}"
        return trio_rpc.method(echo)

    return type("Wide", (), {f"method_{i}": numbered(i) for i in range(methods)})
