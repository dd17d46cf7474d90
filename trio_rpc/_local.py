"""Methods called on a local object: the very interface that a stub has, without a wire.

What holds for a stub holds here: each call is a checkpoint; a plain `def` is awaited; results that stream are an
`async with` block over a `trio.abc.ReceiveChannel`, whose generator runs in one task of its own and has ended when
the block is left; a stream of items is iterated in one child task of the call.

Both streams are one thing, an `_Items`: a producer driven in a child task, and one consumer. They meet item by item;
nothing is buffered but the one item that the consumer has not taken yet.
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar, final

import trio
from trio.lowlevel import ParkingLot, checkpoint

from ._contract import Method, set_local_interface
from ._generators import Stopped, as_generator, drive

__all__ = ["local_interface"]

R = TypeVar("R")
T = TypeVar("T")


@final
class _Items(trio.abc.ReceiveChannel[T]):
    """The consumer's end, and the `Sink` of what is driven at the other end."""

    def __init__(self) -> None:
        self._waiting_items: deque[T] = deque()
        self._arrived, self._taken = ParkingLot(), ParkingLot()
        self._producer = trio.CancelScope()
        self._at_yield = self._receiving = self._closed = False
        self._failure: BaseException | None = None
        self._ended = trio.Event()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ended" if self._ended.is_set() else "open"
        return f"<local stream: {state}>"

    # -- the consumer ----------------------------------------------------------------------------------------------

    async def receive(self) -> T:
        """The next item. Raises EndOfChannel at the end, and once what the producer raised."""
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving from this stream")
        self._receiving = True
        try:
            await checkpoint()
            while not (self._waiting_items or self._ended.is_set()):
                await self._arrived.park()
        finally:
            self._receiving = False
        if self._closed:
            raise trio.ClosedResourceError("this stream's block was left")
        if self._waiting_items:
            self._taken.unpark_all()
            return self._waiting_items.popleft()
        failure = self.take_failure()
        raise trio.EndOfChannel if failure is None else failure

    async def aclose(self) -> None:
        """Stop the producer, and wait for its end; what it raises meanwhile is raised when the block is left."""
        self.stop()
        with trio.CancelScope(shield=True):  # as when the block is left: nothing of it runs on
            await self._ended.wait()
        await checkpoint()

    def stop(self) -> None:
        """Take no more: GeneratorExit for a generator at its `yield`, cancellation of what it waits for elsewhere."""
        self._closed = True
        if self._at_yield:
            self._taken.unpark_all()
        else:
            self._producer.cancel()

    @property
    def closed(self) -> bool:
        """Whether the consumer has left."""
        return self._closed

    def take_failure(self) -> BaseException | None:
        """What the producer raised, unless somebody has it already."""
        failure, self._failure = self._failure, None
        return failure

    # -- the producer ----------------------------------------------------------------------------------------------

    async def produce(
        self, run: Callable[[_Items[T]], Awaitable[None]], failed: Callable[[BaseException], None]
    ) -> None:
        """Run the producer to its end. What it raises is kept for the consumer, and never raised here."""
        try:
            with self._producer:
                if not self._closed:  # left before it began: then it does not begin
                    await run(self)
        except BaseException as exc:  # a Cancelled of outer scopes too: the consumer's side raises it again
            self._failure = exc
            failed(exc)
        self._ended.set()
        self._arrived.unpark_all()

    def batch(self) -> tuple[Callable[[T], object], int]:
        """Never room for two."""
        return self._put, 1

    def _put(self, item: T) -> None:
        self._waiting_items.append(item)
        self._arrived.unpark_all()

    def flush(self) -> None:
        """Nothing is gathered."""

    async def room(self) -> None:
        """Wait until the item is taken, which at this point it never is: a checkpoint."""
        self._at_yield = True
        try:
            while self._waiting_items and not self._closed:
                await self._taken.park()
        finally:
            self._at_yield = False
        if self._closed:
            raise Stopped


Run = Callable[[_Items[T]], Awaitable[None]]


@asynccontextmanager
async def _produced(name: str, run: Run[T], fatal: Callable[[BaseException], bool]) -> AsyncIterator[_Items[T]]:
    """What `run` puts into a channel, for the length of the block, after which nothing of it runs.

    The block's own exception comes out bare, with a failure of the producer's as its note. A failure that nobody has
    received is raised at the block's end; one that is `fatal` cancels the block, and is raised instead.
    """
    await checkpoint()
    items: _Items[T] = _Items()
    killed: list[BaseException] = []
    left: BaseException | None = None

    def failed(exc: BaseException) -> None:
        if fatal(exc) and not items.closed:
            killed.append(exc)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(items.produce, run, failed)
        try:
            yield items
        except BaseException as exc:  # held, and raised again outside of the nursery
            left = exc
        items.stop()
    failure = items.take_failure()
    if killed:
        raise killed[0]
    if left is None:
        if failure is not None:
            raise failure
        return
    if failure is not None and not isinstance(failure, trio.Cancelled):
        left.add_note(f"{name} failed as well: {type(failure).__name__}: {failure}")
    raise left


def _is_exit(exc: BaseException) -> bool:
    """KeyboardInterrupt and SystemExit do not wait for somebody to receive them."""
    return isinstance(exc, KeyboardInterrupt | SystemExit)


def _is_failure(exc: BaseException) -> bool:
    return not isinstance(exc, trio.Cancelled)


Call = Callable[..., Awaitable[R]]


async def _fed(method: Method, call: Call[R], arguments: inspect.BoundArguments) -> R:
    """Make a call while its stream of items, if it has one, is iterated beside it."""
    parameter = method.stream_parameter
    if parameter is None:
        return await call(*arguments.args, **arguments.kwargs)
    iterate = functools.partial(drive, as_generator(arguments.arguments[parameter]))
    async with _produced(f"the stream {parameter!r}", iterate, _is_failure) as items:
        arguments.arguments[parameter] = items
        return await call(*arguments.args, **arguments.kwargs)


def local_interface(method: Method) -> Callable[..., Any]:
    """The function that takes the object and then the arguments, as a stub takes the arguments alone."""
    return _streaming(method) if method.shape.streams_out else _answering(method)


def _bind(method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
    """The arguments by name. Raises TypeError, as any call does, where they do not fit."""
    try:
        arguments = inspect.signature(method.function).bind(*args, **kwargs)
    except TypeError as exc:
        raise TypeError(f"{method.__qualname__}() {exc}") from None
    parameter = method.stream_parameter
    if parameter is not None and not isinstance(arguments.arguments[parameter], AsyncIterable):
        given = type(arguments.arguments[parameter]).__name__
        raise TypeError(
            f"{method.__qualname__}() takes an async iterable as {parameter!r}, not {given}: "
            "give it an async generator or a receive channel"
        )
    return arguments


def _streaming(method: Method) -> Callable[..., AbstractAsyncContextManager[trio.abc.ReceiveChannel[Any]]]:
    @functools.wraps(method.function)
    def local(*args: Any, **kwargs: Any) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Any]]:
        arguments = _bind(method, args, kwargs)

        async def run(items: _Items[Any]) -> None:
            async def generate(*args: Any, **kwargs: Any) -> None:
                await drive(as_generator(method.function(*args, **kwargs)), items)

            await _fed(method, generate, arguments)

        return _produced(method.__qualname__, run, _is_exit)

    return local


def _answering(method: Method) -> Callable[..., Awaitable[Any]]:
    async def call(served: object, *args: Any, **kwargs: Any) -> Any:
        function = functools.partial(method.function, served, *args, **kwargs)
        if _in_thread(method, type(served)):
            return await trio.to_thread.run_sync(function)
        result = function()
        return await result if inspect.iscoroutine(result) else result

    @functools.wraps(method.function)
    async def local(*args: Any, **kwargs: Any) -> Any:
        await checkpoint()
        return await _fed(method, call, _bind(method, args, kwargs))

    return local


def _in_thread(method: Method, cls: type) -> bool:
    """Whether the method, or any other of its name in the class, says `thread=True`."""
    if method.is_async:
        return False
    related = (vars(ancestor).get(method.name) for ancestor in cls.__mro__)
    return any(isinstance(other, Method) and other.thread for other in related)


set_local_interface(local_interface)
