"""What the proofs' server processes do: each method writes what it does into the ledger."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable

import trio_rpc

__all__ = ["Works"]


class Works:
    """Work under a key, which is one call's alone, in all call shapes."""

    @trio_rpc.method
    async def once(self, key: str, seconds: float) -> str:
        """Work for so long, and give the key back."""
        raise NotImplementedError

    @trio_rpc.method(idempotent=True)
    async def again(self, key: str, seconds: float) -> str:
        """Do the same, where a second time does no harm."""
        raise NotImplementedError

    @trio_rpc.method
    async def take(self, key: str, data: bytes) -> int:
        """Take many bytes, and say how many."""
        raise NotImplementedError

    @trio_rpc.method
    async def total(self, key: str, numbers: AsyncIterable[int]) -> int:
        """Add up what comes."""
        raise NotImplementedError

    @trio_rpc.method
    def count(self, key: str, upto: int) -> AsyncGenerator[int, None]:
        """Count."""
        raise NotImplementedError

    @trio_rpc.method
    def doubled(self, key: str, numbers: AsyncIterable[int]) -> AsyncGenerator[int, None]:
        """Give twice each number that comes."""
        raise NotImplementedError

    @trio_rpc.method(idempotent=True)
    async def paced(self) -> None:
        """Take the server's own time."""
        raise NotImplementedError
