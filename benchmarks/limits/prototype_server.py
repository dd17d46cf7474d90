"""The prototype's server: the task that reads runs the handlers, as far as they do not suspend."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

import trio
from trio.lowlevel import current_task, reschedule, wait_task_rescheduled

from ..peers import payload
from .framing import BLOB, CALL, END, ITEMS, STREAM
from .prototype_link import Connection, give_up, pack

__all__ = ["WINDOW", "Server"]

WINDOW = 512
"""Items of a stream that may be under way."""
BATCH = 16


class Worker:
    """A task of a server's connection."""

    __slots__ = ("job", "leads", "task")

    def __init__(self, job: tuple[int, Any] | None) -> None:
        self.task = current_task()
        self.job = job
        self.leads = job is None


class Server(Connection):
    """The accepting side of a connection."""

    def __init__(self, *arguments: Any, suspends: bool) -> None:
        super().__init__(*arguments)
        self.handler: Callable[[Any], Coroutine[Any, Any, Any]] = self.suspending if suspends else self.echo
        self.suspends = False
        """Whether a handler has suspended; then they are not run by the reader any more."""
        self.backlog: deque[tuple[int, int, Any]] = deque()
        self.parked: list[Worker] = []
        self.scopes: dict[int, trio.CancelScope] = {}
        self.credit: dict[int, Credit] = {}

    async def echo(self, value: Any) -> Any:
        """The handler."""
        return value

    async def suspending(self, value: Any) -> Any:
        """The handler that suspends."""
        await trio.lowlevel.checkpoint()
        return value

    async def work(self, job: tuple[int, Any] | None = None) -> None:
        """A task: it does a job when given one, else it leads; then it parks until it is given either."""
        worker = Worker(job)
        with trio.CancelScope() as scope:
            while True:
                if worker.job is not None:
                    number, value = worker.job
                    self.scopes[number] = scope
                    result = await self.handler(value)
                    del self.scopes[number]
                    self.push(pack(number, CALL, result))
                    worker.job = None
                else:
                    worker.leads = True
                    await self.lead(worker, scope)
                    if worker.leads:
                        return
                self.parked.append(worker)
                await wait_task_rescheduled(give_up)

    async def lead(self, worker: Worker, scope: trio.CancelScope) -> None:
        """Read, and run what comes, until a handler has suspended or the peer has closed."""
        backlog, scopes, out = self.backlog, self.scopes, self.out
        while True:
            while backlog:
                number, kind, value = backlog.popleft()
                if kind != CALL:
                    self.other(number, kind, value)
                elif self.suspends:
                    self.hand_over((number, value))
                else:
                    scopes[number] = scope
                    result = await run_here(self.handler(value), self, worker)
                    del scopes[number]
                    if not worker.leads:
                        self.push(pack(number, CALL, result))
                        return
                    out.append(pack(number, CALL, result))
            if not self.flush() and not self.draining:
                self.draining = True
                self.nursery.start_soon(self.drain)
            frames = await self.receive()
            if frames is None:
                self.nursery.cancel_scope.cancel()
                return
            backlog.extend(frames)

    def hand_over(self, job: tuple[int, Any]) -> None:
        """Have another task do it."""
        if self.parked:
            worker = self.parked.pop()
            worker.job = job
            reschedule(worker.task)
        else:
            self.nursery.start_soon(self.work, job)

    def promote(self, worker: Worker) -> None:
        """The leader's handler has suspended: another one is to lead."""
        worker.leads, self.suspends = False, True
        if self.parked:
            reschedule(self.parked.pop().task)
        else:
            self.nursery.start_soon(self.work)

    def other(self, number: int, kind: int, value: Any) -> None:
        """What is not a small call."""
        if kind == BLOB:
            self.push_raw(number, value)
        elif kind == STREAM:
            self.nursery.start_soon(self.stream, number, value)
        elif number in self.credit:
            self.credit[number].add(value)

    async def stream(self, number: int, count: int) -> None:
        """Send a stream, as far as the consumer's credit goes."""
        credit = self.credit[number] = Credit()
        batch: list[Any] = []
        for i in range(count):
            if not credit.left:
                self.push(pack(number, ITEMS, batch))
                batch = []
                await credit.wait()
            credit.left -= 1
            batch.append(payload(i))
            if len(batch) == BATCH:
                self.push(pack(number, ITEMS, batch))
                batch = []
            if i % 64 == 0:
                await trio.lowlevel.checkpoint()
        self.push(pack(number, ITEMS, batch))
        self.push(pack(number, END, None))
        del self.credit[number]


class Credit:
    """Items that a stream may still send."""

    def __init__(self) -> None:
        self.left = WINDOW
        self.more = trio.Event()

    def add(self, items: int) -> None:
        """The consumer has taken so many."""
        self.left += items
        self.more.set()

    async def wait(self) -> None:
        """Wait until there is some."""
        while not self.left:
            self.more = trio.Event()
            await self.more.wait()


@types.coroutine
def run_here(handler: Coroutine[Any, Any, Any], server: Server, worker: Worker) -> Generator[Any, Any, Any]:
    """Await `handler`; promote another leader when it suspends for the first time."""
    try:
        trap = handler.send(None)
    except StopIteration as stop:
        return stop.value
    server.promote(worker)
    while True:
        try:
            sent = yield trap
            step = partial(handler.send, sent)
        except BaseException as exc:
            step = partial(handler.throw, exc)
        try:
            trap = step()
        except StopIteration as stop:
            return stop.value
