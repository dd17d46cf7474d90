"""Counting work instead of timing it: what each side of a connection does for a call, seen from outside.

Both sides run in one `trio.run`. A task belongs to the side of the task that started it, and what is counted belongs to
the side whose task is taking a step: steps and tasks by Trio's instruments, system calls by the class that the standard
library makes sockets of, cancel scopes by `trio.CancelScope` itself, readings of the clock by the clock, bytes by
`tracemalloc`. The clock stands still, so that no decision depends on the machine's speed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import socket
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum
from typing import Any, TypeAlias

import attrs
import pytest
import trio
from trio.lowlevel import Task
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_rpc
from trio_rpc import Pool, PoolLimits, ServerLimits

__all__ = ["Ends", "Side", "Use", "Work", "work_per_unit"]

SYSTEM_CALLS = {
    "receives": ("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"),
    "sends": ("send", "sendall", "sendmsg", "sendto"),
    "others": (
        *("accept", "bind", "close", "connect", "connect_ex", "getpeername", "getsockname", "getsockopt"),
        *("listen", "setblocking", "setsockopt", "shutdown"),
    ),
}
STUCK = 2.0
"""Seconds in which nothing happens, after which the clock moves on: it never has to, unless something hangs."""


class Side(Enum):
    """The value is the name of the task that all others of that side come from."""

    CLIENT = "client"
    SERVER = "server"


@attrs.frozen(kw_only=True)
class Work:
    """What one side did. A call in vain counts as any other."""

    steps: float = 0
    """How often the scheduler ran one of its tasks."""
    tasks: float = 0
    """Tasks that it started."""
    scopes: float = 0
    """Cancel scopes that it entered, those of nurseries included."""
    receives: float = 0
    """System calls that take bytes from a socket."""
    sends: float = 0
    """System calls that give bytes to a socket."""
    others: float = 0
    """Other system calls on sockets: to open, set up and close them."""
    readings: float = 0
    """Readings of the clock."""
    allocated: float = 0
    """Bytes by which its steps made memory grow, each at its worst moment; 0 unless traced."""

    def beyond(self, most: Work) -> dict[str, float]:
        """The numbers here that are greater than there."""
        limits = attrs.asdict(most)
        return {what: count for what, count in attrs.asdict(self).items() if count > limits[what]}


@attrs.frozen
class Ends:
    """A server's address, and a warm pool of one connection to it."""

    address: str
    pool: Pool


Use: TypeAlias = Callable[[Ends, int], Awaitable[object]]
"""Does so many units of work."""
Tally: TypeAlias = dict[tuple[Side, str], int]


class Observer(trio.abc.Instrument):
    """Sees every step of every task."""

    def __init__(self) -> None:
        self.tally: Tally = {}
        self._sides: dict[Task, Side] = {}
        self._side: Side | None = None
        """Whose task is running."""
        self._start = 0
        """Bytes in use when it began."""

    def note(self, what: str, count: int = 1) -> None:
        """Count something for the side whose task is running; what Trio does by itself is nobody's."""
        if self._side is not None:
            self.tally[self._side, what] = self.tally.get((self._side, what), 0) + count

    def task_spawned(self, task: Task) -> None:
        parent = task.parent_nursery.parent_task if task.parent_nursery is not None else None
        if parent in self._sides:
            side = self._sides[task] = self._sides[parent]
            self.tally[side, "tasks"] = self.tally.get((side, "tasks"), 0) + 1
        elif task.name in {side.value for side in Side}:
            self._sides[task] = Side(task.name)

    def task_exited(self, task: Task) -> None:
        self._sides.pop(task, None)

    def before_task_step(self, task: Task) -> None:
        self._side = self._sides.get(task)
        self.note("steps")
        if tracemalloc.is_tracing():
            tracemalloc.reset_peak()
            self._start, _ = tracemalloc.get_traced_memory()

    def after_task_step(self, task: Task) -> None:
        if tracemalloc.is_tracing():
            _, peak = tracemalloc.get_traced_memory()
            self.note("allocated", peak - self._start)
        self._side = None


def work_per_unit(
    use: Use, service: object, units: int, *, max_message_size: int = 4 << 20, traced: bool = False
) -> dict[Side, Work]:
    """What a unit of `use` costs each side, once both are warm.

    It is the difference between twice as many units and so many: what is paid once for all of them cancels out.
    """
    with observed() as observer, tracing() if traced else contextlib.nullcontext():
        windows = functools.partial(two_windows, observer, use, service, units, max_message_size)
        less, more = trio.run(windows, clock=MockClock(autojump_threshold=STUCK), instruments=[observer])

    def per_unit(side: Side, what: str) -> float:
        return (more.get((side, what), 0) - less.get((side, what), 0)) / units

    names = [field.name for field in attrs.fields(Work)]
    return {side: Work(**{name: per_unit(side, name) for name in names}) for side in Side}


async def two_windows(
    observer: Observer, use: Use, service: object, units: int, max_message_size: int
) -> tuple[Tally, Tally]:
    """Serve and call over loopback; tallies of so many units, and of twice as many."""
    limits = PoolLimits(max_connections=1, max_message_size=max_message_size)
    tallies: list[Tally] = []

    async def client(address: str) -> None:
        async with trio_rpc.open_pool(address, limits=limits) as pool:
            ends = Ends(address, pool)
            await use(ends, units)  # Warm.
            for count in (units, 2 * units):
                await wait_all_tasks_blocked()
                gc.collect()
                observer.tally = {}
                await use(ends, count)
                await wait_all_tasks_blocked()
                tallies.append(observer.tally.copy())

    serve = functools.partial(trio_rpc.serve, limits=ServerLimits(max_message_size=max_message_size))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail_if_stuck)
        server = await nursery.start(serve, service, "tcp://127.0.0.1:0", name=Side.SERVER.value)
        assert server is not None
        async with trio.open_nursery() as clients:
            clients.start_soon(client, server.addresses[0], name=Side.CLIENT.value)
        nursery.cancel_scope.cancel()
    less, more = tallies
    return less, more


async def fail_if_stuck() -> None:
    """No timeout for those who work: it would be the deadline of their calls."""
    await trio.sleep(1)
    raise AssertionError(f"nothing happened for {STUCK:g} s, and the work is not done")


@contextlib.contextmanager
def observed() -> Iterator[Observer]:
    """Within the block, every use of a new socket, of any cancel scope and of the clock is noted."""
    observer = Observer()

    def counted(function: Callable[..., Any], what: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            observer.note(what)
            return function(*args, **kwargs)

        return call

    methods = {
        name: counted(getattr(socket.socket, name), what) for what, names in SYSTEM_CALLS.items() for name in names
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", type("CountingSocket", (socket.socket,), methods))
        patch.setattr(trio.CancelScope, "__enter__", counted(trio.CancelScope.__enter__, "scopes"))
        patch.setattr(MockClock, "current_time", counted(MockClock.current_time, "readings"))
        yield observer


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Within the block, allocations are traced."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
