"""Driving an async generator: one task, from its first step to its last.

A generator may hold cancel scopes and nurseries open across its `yield`s, and both belong to the task that entered
them. So one task drives it, and whatever is raised while that task waits for the consumer (a cancellation, the
consumer's leaving) is thrown in *at the yield*: the generator's own scopes and `finally` blocks see it, as they
would see it from a plain `await` in the same place.

Items only gather until the task is about to sleep; then `flush` hands them over as one batch. To notice that, the whole
of it is stepped by hand, from suspension to suspension. Between these the generator is iterated by a plain `async for`,
which appends to a list: to step the generator itself, and to ask about each item, took three times as long.
"""

from __future__ import annotations

import types
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar

__all__ = ["Sink", "Stopped", "as_generator", "drive"]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Stopped(Exception):
    """The consumer has left: raised by `Sink.room` to have the generator closed (GeneratorExit at its yield)."""


class Sink(Protocol[T_contra]):
    """Where the items of a driven generator go."""

    def batch(self) -> tuple[Callable[[T_contra], object], int]:
        """What takes the next items, one in each call, and never raises; and how many before `room` is asked for."""
        ...

    def flush(self) -> None:
        """Hand over what was gathered: the task is about to sleep, or the generator has ended. Never raises."""

    async def room(self) -> None:
        """Wait until there is room for another batch; a checkpoint in any case, so that no generator starves others.

        Raises Stopped once the consumer has left. Whatever it raises is thrown in at the generator's yield.
        """


def as_generator(items: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """Something to `drive`: an async generator itself, which is then driven to its end, or the iteration of the rest.

    What is only iterated stays its owner's: nothing closes it here.
    """
    return items if isinstance(items, AsyncGenerator) else _iterate(items)


async def _iterate(items: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    async for item in items:
        yield item


async def drive(agen: AsyncGenerator[T, None], sink: Sink[T]) -> None:
    """Run `agen` to its end in this task, every item into `sink`.

    Returns when the generator has ended, by itself or because the consumer left (`Stopped`): its `finally` blocks
    have run then. Raises what the generator raises, and nothing of the sink's that the generator has handled.
    """
    try:
        await _flushing(_feed(agen, sink), sink.flush)
    finally:
        sink.flush()


@types.coroutine
def _flushing(coro: Coroutine[Any, Any, None], flush: Callable[[], None]) -> Generator[Any, Any, None]:
    """Await `coro` in this very task, with `flush()` before each time that it suspends."""
    step: Callable[[Any], Any] = coro.send
    value: Any = None
    while True:
        try:
            trap = step(value)
        except StopIteration:
            return
        flush()
        try:
            value = yield trap
            step = coro.send
        except BaseException as exc:  # not handled, only handed on, in the same task
            step, value = coro.throw, exc


async def _feed(agen: AsyncGenerator[T, None], sink: Sink[T]) -> None:
    put, left = sink.batch()
    error: BaseException | None = None
    while True:
        if error is None:
            async for item in agen:
                put(item)
                left -= 1
                if not left:
                    if error := await _refusal(sink):
                        break
                    put, left = sink.batch()
            else:
                return
        elif isinstance(error, Stopped):
            await _close(agen)
            return
        else:
            try:
                # At the yield, not here: a scope that the generator holds open may be the one that fired.
                item = await agen.athrow(error)
            except StopAsyncIteration:
                return
            put(item)
            error = await _refusal(sink)
            put, left = sink.batch()


async def _refusal(sink: Sink[Any]) -> BaseException | None:
    """Wait for room; what that raises is the generator's to see: it raises it again, or handles it."""
    try:
        await sink.room()
    except BaseException as exc:
        return exc
    return None


async def _close(agen: AsyncGenerator[Any, None]) -> None:
    """Throw GeneratorExit in at the yield. A nursery that is open there hands it on in a group: still no failure."""
    try:
        await agen.aclose()
    except BaseExceptionGroup as group:
        _, failures = group.split(GeneratorExit)
        if failures is not None:
            raise failures from None
