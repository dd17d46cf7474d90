"""Driving an async generator: one task, from its first step to its last.

A generator may hold cancel scopes and nurseries open across its `yield`s, and both belong to the task that entered
them. So one task drives it, and whatever is raised while that task waits for the consumer (a cancellation, the
consumer's leaving) is thrown in *at the yield*: the generator's own scopes and `finally` blocks see it, as they
would see it from a plain `await` in the same place.

The generator is stepped by hand, so that its first suspension between two items is noticed: until then items only
gather (`put`), and `flush` hands them over as one batch before the task really sleeps.
"""

from __future__ import annotations

import types
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator
from functools import partial
from typing import Any, Protocol, TypeVar

__all__ = ["Sink", "Stopped", "as_generator", "drive", "notice_suspension"]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

RUN_LENGTH = 64
"""Items made without a suspension before the task yields to the scheduler once, so that no generator starves others."""


class Stopped(Exception):
    """The consumer has left: raised by `Sink.room` to have the generator closed (GeneratorExit at its yield)."""


class Sink(Protocol[T_contra]):
    """Where the items of a driven generator go."""

    def put(self, item: T_contra) -> bool:
        """Take one item; True if there is room for another at once. What it raises is thrown in at the yield."""
        ...

    def flush(self) -> None:
        """Hand over what was gathered: the generator is about to wait, or has ended. Never raises."""

    async def room(self) -> None:
        """Wait until `put` has room again; a checkpoint in any case. Raises Stopped once the consumer has left."""


def as_generator(items: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """Something to `drive`: an async generator itself, which is then driven to its end, or the iteration of the rest.

    What is only iterated stays its owner's: nothing closes it here.
    """
    return items if isinstance(items, AsyncGenerator) else _iterate(items)


async def _iterate(items: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    async for item in items:
        yield item


@types.coroutine
def notice_suspension(awaitable: Awaitable[T], suspends: Callable[[], object]) -> Generator[Any, Any, T]:
    """Await `awaitable` in this very task, calling `suspends()` just before it suspends for the first time."""
    steps: Any = awaitable.__await__()
    step: Callable[[], Any] = partial(next, steps)
    noticed = False
    while True:
        try:
            trap = step()
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        if not noticed:
            noticed = True
            suspends()
        try:
            step = partial(steps.send, (yield trap))
        except BaseException as exc:  # not handled, only handed on, in the same task
            step = partial(steps.throw, exc)


async def drive(agen: AsyncGenerator[T, None], sink: Sink[T]) -> None:
    """Run `agen` to its end in this task, every item into `sink`.

    Returns when the generator has ended, by itself or because the consumer left (`Stopped`): its `finally` blocks
    have run then. Raises what the generator raises, and nothing of the sink's that the generator has handled.
    """
    run = 0
    step: Callable[[], Awaitable[T]] = agen.__anext__
    while True:
        try:
            item = await notice_suspension(step(), sink.flush)
        except StopAsyncIteration:
            sink.flush()
            return
        step = agen.__anext__
        run += 1
        try:
            if sink.put(item) and run % RUN_LENGTH:
                continue
            sink.flush()
            await sink.room()
        except Stopped:
            await _close(agen)
            return
        except BaseException as exc:  # the generator raises it again, or handles it
            # At the yield, not here: a scope that the generator holds open may be the one that fired.
            step = partial(agen.athrow, exc)


async def _close(agen: AsyncGenerator[Any, None]) -> None:
    """Throw GeneratorExit in at the yield. A nursery that is open there hands it on in a group: still no failure."""
    try:
        await agen.aclose()
    except BaseExceptionGroup as group:
        _, failures = group.split(GeneratorExit)
        if failures is not None:
            raise failures from None
