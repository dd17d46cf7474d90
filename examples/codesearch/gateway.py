"""The gateway: one search over many, and itself a search like each of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import attrs
import trio

import trio_rpc

from .contract import Answer, Enough, Match, Missing, Query, Search, ShareStats
from .index import compile_query


class Gateway(Search):
    """Fans each query out over all shares, and streams back what they find, as they find it.

    A share that cannot be reached, or is lost on the way, costs its own matches: the rest arrives all the same,
    with a `Missing` that names it.

    Args:
        shares: what is searched, by name: stubs of other processes, as in the demo, or any other `Search`.
    """

    def __init__(self, shares: Mapping[str, Search]) -> None:
        self._shares = dict(shares)

    @trio_rpc.method
    async def search(self, query: Query) -> AsyncGenerator[Answer, None]:
        """Yield the answers of all shares, in the order in which they come."""
        compile_query(query)  # a bad pattern is refused here, before anybody is asked
        # The limit counts matches over all shares, which only we see; so none of them is told it.
        whole = attrs.evolve(query, limit=None)
        found = 0
        send, receive = trio.open_memory_channel[Answer](0)
        async with trio.open_nursery() as nursery:
            async with send:
                for name, share in self._shares.items():
                    nursery.start_soon(self._ask, name, share, whole, send.clone())
            # Ends when the last task has closed its clone of `send`.
            async for answer in receive:
                yield answer
                found += isinstance(answer, Match)
                if found == query.limit:
                    # Each share's search is left, which stops it over there. The nursery waits until all have
                    # stopped: when our caller has the last answer, nothing of this query runs anywhere.
                    nursery.cancel_scope.cancel()
                    break
        if found == query.limit:
            yield Enough(found)

    async def _ask(self, name: str, share: Search, query: Query, send: trio.MemorySendChannel[Answer]) -> None:
        async with send:
            try:
                async with share.search(query) as answers:
                    async for answer in answers:
                        # Without a buffer: a caller who reads slowly slows the workers down, all the way.
                        await send.send(answer)
            except trio_rpc.RpcError as error:
                await send.send(Missing(name, f"{type(error).__name__}: {error.message}"))

    @trio_rpc.method
    async def stats(self) -> list[ShareStats]:
        """The entries of all shares that answer, in the order of the shares."""
        collected: dict[str, list[ShareStats]] = {name: [] for name in self._shares}

        async def collect(name: str, share: Search) -> None:
            try:
                collected[name] = await share.stats()
            except trio_rpc.RpcError:
                pass  # what cannot be reached has no entry

        async with trio.open_nursery() as nursery:
            for name, share in self._shares.items():
                nursery.start_soon(collect, name, share)
        return [entry for name in self._shares for entry in collected[name]]
