"""What the servers serve, and the ledger in which each of them writes what ran."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import trio

from trio_rpc import RemoteError, RpcError, current_call, method

from .journal import Journal

__all__ = ["CalledBack", "Declined", "Ledger", "Simulated", "Spoilt", "items"]


class Declined(Exception):
    """What a handler raises that has done its work and does not like the result."""


class Spoilt(Exception):
    """What a caller's stream of items raises that has gone bad."""


class Ledger:
    """What ran, how often, and what runs now, on all servers together. A life is that of one server."""

    def __init__(self, journal: Journal) -> None:
        self.runs: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.ended_in_life: Counter[tuple[int, int]] = Counter()
        self.running: Counter[tuple[int, int]] = Counter()
        self.met_itself: set[int] = set()
        """Calls that ran twice at the same time in one life."""
        self._journal = journal
        self._met = 0
        self._all_met = trio.Event()

    @asynccontextmanager
    async def run(self, life: int, number: int, takes: float, cleanup: float) -> AsyncIterator[None]:
        """One run of a handler, which takes its time; and if it is cancelled, `cleanup` seconds more."""
        self._journal.note("run", number)
        self.runs[number] += 1
        self.running[life, number] += 1
        if self.running[life, number] > 1:
            self.met_itself.add(number)
        try:
            if takes:
                await trio.sleep(takes)
            yield
            self.ended[number] += 1
            self.ended_in_life[life, number] += 1
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)
            raise
        finally:
            self.running[life, number] -= 1
            self._journal.note("ran", number)

    async def meet(self, count: int) -> None:
        """Wait until `count` callers wait here at the same time."""
        self._met += 1
        all_met = self._all_met
        if self._met == count:
            all_met.set()
            self._all_met = trio.Event()
        try:
            await all_met.wait()
        finally:
            self._met -= 1


class CalledBack:
    """What a client serves to its servers."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @method
    async def back(self, number: int, takes: float, cleanup: float) -> int:
        async with self._ledger.run(0, -number, takes, cleanup):
            return number


class Simulated:
    """What all servers serve. Each call has a number of its own, which its result shows again."""

    def __init__(self, ledger: Ledger, life: int) -> None:
        self._ledger, self._life = ledger, life

    @method
    async def once(self, number: int, takes: float, cleanup: float, data: bytes) -> tuple[int, int]:
        async with self._ledger.run(self._life, number, takes, cleanup):
            return number, len(data)

    @method(idempotent=True)
    async def again(self, number: int, takes: float, cleanup: float, data: bytes) -> tuple[int, int]:
        async with self._ledger.run(self._life, number, takes, cleanup):
            return number, len(data)

    @method(raises=[Declined])
    async def decline(self, number: int, takes: float, cleanup: float) -> int:
        async with self._ledger.run(self._life, number, takes, cleanup):
            pass
        raise Declined(str(number))

    @method
    async def relay(self, number: int, takes: float, cleanup: float) -> int:
        async with self._ledger.run(self._life, number, 0.0, 0.0):
            try:
                result: int = await current_call().peer.stub(CalledBack).back(number, takes, cleanup)
            except RpcError as exc:
                raise RemoteError(f"the caller does not answer: {exc}") from exc
            return result

    @method
    async def count(self, number: int, takes: float, cleanup: float, upto: int) -> AsyncGenerator[int, None]:
        async with self._ledger.run(self._life, number, takes / 2, cleanup), aclosing(items(number, upto)) as own:
            async for item in own:
                yield item
            await trio.sleep(takes / 2)

    @method
    async def total(self, number: int, takes: float, cleanup: float, received: AsyncIterable[int]) -> int:
        async with self._ledger.run(self._life, number, takes, cleanup):
            return sum([item async for item in received])

    @method
    async def double(
        self, number: int, takes: float, cleanup: float, received: AsyncIterable[int]
    ) -> AsyncGenerator[int, None]:
        async with self._ledger.run(self._life, number, takes, cleanup):
            async for item in received:
                yield 2 * item

    @method(idempotent=True)
    async def ping(self) -> None:
        await trio.sleep(0.01)

    @method
    async def meet(self, count: int) -> None:
        await self._ledger.meet(count)


async def items(number: int, upto: int, spoilt_after: int | None = None) -> AsyncGenerator[int, None]:
    """The items of one call's stream; some of them take a while, and one may be bad."""
    for item in range(upto):
        if item == spoilt_after:
            raise Spoilt
        if (number + item) % 7 == 0:
            await trio.sleep(0.1)
        yield number * 1000 + item
