"""Several calls side by side: all of them, the first that succeeds, a quorum, one for each of many items.

Each call is an async callable without arguments, and runs in a task of its own: a child of the caller's task, in a
copy of the caller's context. All of them have ended when the helper returns or raises. One rule for each question that
arises:

- *Which exceptions are a call's failure?* Every `Exception`, an RpcError or not: whoever needs one answer does not
  care why another one is missing. KeyboardInterrupt and the like are nobody's failure: they stop everything at once.
- *Who is waited for?* Where results decide (`first_success`, `quorum`), nobody: the losers are cancelled for LOST_RACE,
  so that their tasks go on at once, while their connections stop the handlers and keep their places until these have
  ended. Where a failure decides (`call_all`, `gather`), everybody: an ordinary cancellation, joined, as in a nursery.
- *What comes out of a cancellation from outside?* What the calls make of it: a result or a failure that won the race
  against it, as for a single call, else Trio's own Cancelled.

Tasks here record what they raise, and `_Fan` holds what its block raises. The helpers say what becomes of it.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Generic, TypeAlias, TypeVar

import trio
from trio.lowlevel import ParkingLot, checkpoint_if_cancelled

from ._calls import LOST_RACE

__all__ = ["call_all", "first_success", "gather", "quorum"]

A = TypeVar("A")
T = TypeVar("T")

AsyncCall: TypeAlias = Callable[[], Awaitable[T]]

FAILED_BESIDE = "a call beside it has failed"
"""The reason of a cancellation that is joined."""


async def call_all(calls: Iterable[AsyncCall[T]], *, limit: int | None = None) -> list[T]:
    """Make all calls, and return their results in the order of the calls.

    The first failure cancels the other calls, waits for their end as any cancellation does, and comes out as it is. If
    others fail as well meanwhile, all failures come out as one ExceptionGroup, in the order of the calls::

        levels = await call_all([partial(stub.stock, "A-1") for stub in pool.stubs(Inventory)])

    Args:
        calls: async callables without arguments. In a loop take `functools.partial`: a lambda would see the last stub
            in all its calls.
        limit: how many may be under way at once; None for all. They begin in order.

    Raises:
        TypeError: one of the calls is none, for one a coroutine. Nothing was started then.
        ValueError: `limit` is below 1.
    """
    todo = _checked("call_all", calls)
    async with _Fan[T](limit) as fan:
        await fan.start_all(todo)
    return fan.all_results()


async def gather(function: Callable[[A], Awaitable[T]], items: Iterable[A], *, limit: int | None) -> list[T]:
    """Call an async function for each item, at most `limit` at once; the results are in the order of the items.

    An item is taken when its turn has come. Failures are those of `call_all`; what the iterable itself raises stops
    the calls likewise::

        levels = await gather(inventory.stock, skus, limit=20)

    Args:
        function: called with one item.
        items: any iterable, endless ones excluded.
        limit: how many may be under way at once; None for all.

    Raises:
        TypeError: the function is none, for one a coroutine, or the items are no plain iterable.
        ValueError: `limit` is below 1.
    """
    _check_callables("gather", [function])
    if isinstance(items, AsyncIterable):
        raise TypeError("gather takes a plain iterable of items, not an async one: collect them into a list first")
    async with _Fan[T](limit) as fan:
        await fan.start_all(functools.partial(function, item) for item in items)
    return fan.all_results()


async def first_success(calls: Iterable[AsyncCall[T]], *, delay: float | None = None) -> T:
    """Return the first result that comes; the other calls are cancelled, and not waited for.

    Remote handlers are stopped by their connections, which wait for their end. Local functions are cancelled as ever,
    and have ended when this returns. Use it for idempotent methods: a loser may have run.

    Args:
        calls: async callables without arguments, as for `call_all`.
        delay: None to begin them all at once. Else seconds from the start of each to that of the next, which begins
            at once whenever one has failed: the usual way to try the nearest first.

    Raises:
        ExceptionGroup: all calls have failed; their failures in the order of the calls. A group also of one.
        TypeError: one of the calls is none, for one a coroutine. Nothing was started then.
        ValueError: there are no calls, or `delay` is negative.
    """
    todo = _checked("first_success", calls)
    if not todo:
        raise ValueError("first_success has nothing to call: give it one call at least")
    if delay is not None and not 0 <= delay < math.inf:
        raise ValueError(f"delay must be at least 0 seconds, and finite, or None for none: not {delay!r}")
    async with _Fan[T](enough=1) as fan:
        await fan.start_staggered(todo, delay)
    fan.raise_urgent()
    if fan.results:
        return next(iter(fan.results.values()))
    if len(fan.failures) < len(todo):
        fan.raise_cancelled()
    raise fan.group(f"all {len(todo)} calls failed")


async def quorum(calls: Iterable[AsyncCall[T]], needed: int) -> list[tuple[int, T]]:
    """Return the first `needed` results that come, each with the index of its call, in the order of their arrival.

    The other calls are cancelled, and not waited for, as in `first_success`: once there are enough results, and as
    well once so many calls have failed that there cannot be enough.

    Args:
        calls: async callables without arguments, as for `call_all`. All begin at once.
        needed: how many must succeed.

    Raises:
        ExceptionGroup: too many calls failed; their failures in the order of the calls. A group also of one.
        TypeError: one of the calls is none, for one a coroutine. Nothing was started then.
        ValueError: `needed` is below 1, or above the number of calls.
    """
    todo = _checked("quorum", calls)
    _check_count("needed", needed)
    if needed > len(todo):
        raise ValueError(f"quorum cannot get {needed} results of {len(todo)} calls: `needed` is at most their number")
    bearable = len(todo) - needed
    async with _Fan[T](enough=needed, bearable=bearable) as fan:
        await fan.start_all(todo)
    fan.raise_urgent()
    if len(fan.results) >= needed:
        return list(fan.results.items())[:needed]
    if len(fan.failures) <= bearable:
        fan.raise_cancelled()
    raise fan.group(f"{len(fan.failures)} of {len(todo)} calls failed, and {needed} had to succeed")


class _Fan(Generic[T]):
    """Tasks with a call each, for the length of a block: when it has been left they have ended, and it raises nothing.

    It is over with `enough` results or more failures than are `bearable`, with what its block raises, or with what a
    call raises that is no failure of it: then it cancels what is under way, and starts no more. A cancellation from
    outside needs none of that, as it is its block's and the calls' own.
    """

    def __init__(self, limit: int | None = None, *, enough: int | None = None, bearable: int | None = None) -> None:
        if limit is not None:
            _check_count("limit", limit)
        self.results: dict[int, T] = {}
        """By the index of the call, in the order of arrival."""
        self.failures: dict[int, Exception] = {}
        self._held: list[BaseException] = []
        """What is neither: Cancelled from outside, KeyboardInterrupt, what the block raised."""
        self._limit = math.inf if limit is None else limit
        self._enough = math.inf if enough is None else enough
        self._bearable = bearable if bearable is not None else 0 if enough is None else math.inf
        self._scopes: dict[int, trio.CancelScope] = {}
        self._started = 0
        self._over = False
        self._changed = ParkingLot()
        self._manager = trio.open_nursery()

    async def __aenter__(self) -> _Fan[T]:
        await checkpoint_if_cancelled()
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        if exc is not None:
            self._hold(exc)
        try:
            # Not only in the nursery, which would have all calls joined before a KeyboardInterrupt goes on.
            while self._scopes:
                await self._changed.park()
        except trio.Cancelled:
            pass  # The calls have it as well: what has become of it is theirs to tell.
        except BaseException as interrupt:
            self._hold(interrupt)
        try:
            await self._manager.__aexit__(None, None, None)
        except BaseExceptionGroup as group:  # A KeyboardInterrupt has met `_run` itself.
            for exc in group.exceptions:
                self._hold(exc)
        return True

    # -- in the block ----------------------------------------------------------------------------------------------

    async def start_all(self, calls: Iterable[AsyncCall[T]]) -> None:
        """Start one after the other, as the limit allows."""
        for call in calls:
            while len(self._scopes) >= self._limit:
                await self._changed.park()
            if self._over:
                return
            self._start(call)

    async def start_staggered(self, calls: Iterable[AsyncCall[T]], delay: float | None) -> None:
        """Start each `delay` after the one before, or in the place of one that has failed."""
        replaced = 0
        for call in calls:
            if self._started and delay is not None:
                with trio.move_on_after(delay):
                    while len(self.failures) <= replaced and not self._over:
                        await self._changed.park()
                replaced += len(self.failures) > replaced
            if self._over:
                return
            self._start(call)

    def _start(self, call: AsyncCall[T]) -> None:
        # From the caller's own task alone, whose context it gets a copy of; an ended call's would be another one.
        index, self._started = self._started, self._started + 1
        self._scopes[index] = trio.CancelScope()
        self._nursery.start_soon(self._run, index, call, name=call)

    async def _run(self, index: int, call: AsyncCall[T]) -> None:
        try:
            with self._scopes[index]:  # Takes its own Cancelled out of a group, which leaves the failures.
                await checkpoint_if_cancelled()
                awaitable: Any = call()
                if inspect.isawaitable(awaitable):
                    self.results[index] = await awaitable
                else:  # As this call's failure it might be hidden behind another one's result.
                    self._hold(_not_awaitable(call, awaitable))
        except Exception as exc:
            self.failures[index] = exc
        except BaseException as exc:
            self._hold(exc)
        del self._scopes[index]
        if len(self.failures) > self._bearable or len(self.results) >= self._enough:
            self._finish(LOST_RACE if self._enough < math.inf else FAILED_BESIDE)
        self._changed.unpark_all()

    def _hold(self, exc: BaseException) -> None:
        """Something wants out. If it is a cancellation, then from outside, and everybody has it already."""
        self._held.append(exc)
        if not isinstance(exc, trio.Cancelled):
            self._finish(FAILED_BESIDE if isinstance(exc, Exception) else LOST_RACE)

    def _finish(self, reason: str) -> None:
        self._over = True
        for scope in self._scopes.values():
            scope.cancel(reason)

    # -- after the block -------------------------------------------------------------------------------------------

    def all_results(self) -> list[T]:
        """In the order of the calls; raises what there is instead."""
        errors: list[BaseException] = [self.failures[index] for index in sorted(self.failures)]
        self._raise(errors + self._urgent())
        self.raise_cancelled()
        return [self.results[index] for index in range(self._started)]

    def raise_urgent(self) -> None:
        """Raise what is not a call's failure."""
        self._raise(self._urgent())

    def raise_cancelled(self) -> None:
        """Raise the Cancelled that kept calls from their end."""
        if self._held:
            raise self._held[0]

    def group(self, text: str) -> ExceptionGroup[Exception]:
        """All failures, in the order of the calls."""
        return ExceptionGroup(text, [self.failures[index] for index in sorted(self.failures)])

    def _urgent(self) -> list[BaseException]:
        return [exc for exc in self._held if not isinstance(exc, trio.Cancelled)]

    def _raise(self, errors: list[BaseException]) -> None:
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup(f"{len(errors)} calls failed", errors)


def _not_awaitable(call: object, result: object) -> TypeError:
    return TypeError(
        f"{call!r} returned {type(result).__name__}, which cannot be awaited: give an async function, "
        "or what calls one and returns its coroutine"
    )


def _checked(helper: str, calls: Iterable[AsyncCall[T]]) -> list[AsyncCall[T]]:
    """The calls as a list. Raises TypeError for what cannot be one, before anything is started."""
    if not isinstance(calls, Iterable):
        raise TypeError(
            f"{helper} takes a list of calls, not {type(calls).__name__}: write `{helper}([partial(stub.method, argument), ...])`"
        )
    todo = list(calls)
    _check_callables(helper, todo)
    return todo


def _check_callables(helper: str, given: Iterable[Any]) -> None:
    wrong = [call for call in given if not callable(call)]
    for call in wrong:
        if inspect.iscoroutine(call):
            call.close()  # Else Python complains as well, some time later, that nobody has awaited it.
    if wrong:
        raise _mistake(helper, wrong[0])


def _mistake(helper: str, given: Any) -> TypeError:
    if inspect.isawaitable(given):
        name = getattr(given, "__qualname__", type(given).__name__)
        return TypeError(
            f"{helper} makes the calls itself, and was given one that is made already ({name}): "
            "write `partial(stub.method, argument)` instead of `stub.method(argument)`"
        )
    return TypeError(f"{helper} takes async functions, not {given!r:.80}")


def _check_count(name: str, count: Any) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name} must be a whole number, not {count!r:.80}")
    if count < 1:
        raise ValueError(f"{name} must be at least 1, not {count}")
