"""Cancel a scenario everywhere it can be cancelled.

Cancellation bugs hide between two particular awaits, and a test that cancels after some time finds one pair of them
at best. This runs a scenario as often as it has checkpoints, and cancels it at another one each time.

The places are counted by a Trio instrument, which sees every step of every task: the scenario is not wrapped, and
runs as it would without us. When the counted step has ended, the task has just handed its wish to sleep to Trio, and
no other task has run since: a cancellation from here meets it exactly there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import trio

__all__ = ["cancel_at_every_checkpoint"]


class _Injector(trio.abc.Instrument):
    """Cancels `scope` at the `target`-th suspension of the watched tasks."""

    def __init__(self, scope: trio.CancelScope, target: int, *, spawned: bool, waking: bool) -> None:
        self.scope = scope
        self.target = target
        self.visited = 0
        self.spawned = spawned
        self.waking = waking
        self.sleeper: trio.lowlevel.Task | None = None
        self.watched: set[trio.lowlevel.Task] = set()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        parent = task.parent_nursery
        if self.spawned and parent is not None and parent.parent_task in self.watched:
            self.watched.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.watched.discard(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.sleeper:
            self.sleeper = None
            self.scope.cancel()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task not in self.watched:
            return
        self.visited += 1
        if self.visited == self.target:
            if self.waking:
                self.sleeper = task
            else:
                self.scope.cancel()


class _Run:
    """One run of the scenario, cancelled at the `target`-th checkpoint if there are that many."""

    def __init__(self, target: int, *, spawned: bool, waking: bool) -> None:
        self.scope = trio.CancelScope()
        self.injector = _Injector(self.scope, target, spawned=spawned, waking=waking)
        self.failure: BaseException | None = None

    async def run(self, scenario: Callable[[], Awaitable[object]]) -> None:
        """Run the scenario in a task of its own, so that what it spawns can be told from what its caller did."""
        trio.lowlevel.add_instrument(self.injector)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._task, scenario, name=scenario)
        finally:
            trio.lowlevel.remove_instrument(self.injector)
        if self.failure is not None:
            raise self.failure

    async def _task(self, scenario: Callable[[], Awaitable[object]]) -> None:
        try:
            with self.scope:
                self.injector.watched.add(trio.lowlevel.current_task())
                await scenario()
        except trio.Cancelled:
            raise
        except BaseException as exc:
            self.failure = exc  # raised outside the nursery, which would put it into a group


async def cancel_at_every_checkpoint(
    scenario: Callable[[], Awaitable[object]],
    check: Callable[[], Awaitable[object]] | None = None,
    *,
    spawned: bool = False,
    moment: Literal["suspending", "waking"] = "suspending",
    limit: int = 10_000,
) -> int:
    """Run `scenario` again and again, the n-th time cancelled at its n-th checkpoint, until one run is not reached.

    A checkpoint here is each point where the scenario's task suspends; with `spawned=True` also those of the tasks
    in nurseries that the scenario opens. After every run, the last and uncancelled one included, `check` is awaited:
    it asserts what must hold however the scenario ended.

    `moment="suspending"` cancels the task as it falls asleep. `moment="waking"` cancels just before it runs again:
    what it waited for has happened, and the cancellation is only noticed at its next checkpoint.

    The whole scenario is cancelled, from outside. If it fails, or `check` does, that very exception comes out with
    a note that tells the checkpoint. AssertionError after `limit` runs.

    Returns the number of checkpoints visited in the uncancelled run. A scenario of more than one task need not take
    the same steps each time: this is thorough, not a proof.
    """
    if moment not in ("suspending", "waking"):
        raise ValueError(f'moment must be "suspending" or "waking", not {moment!r}')
    for target in range(1, limit + 1):
        run = _Run(target, spawned=spawned, waking=moment == "waking")
        try:
            await run.run(scenario)
            if check is not None:
                await check()
        except Exception as exc:
            reached = run.injector.visited >= target
            exc.add_note(f"(cancelled {moment} at checkpoint {target})" if reached else "(in the uncancelled run)")
            raise
        await trio.lowlevel.checkpoint()  # a scenario that shields itself must not keep our caller from cancelling us
        if run.injector.visited < target:
            return run.injector.visited
    raise AssertionError(f"{scenario!r} still had a checkpoint to cancel at after {limit} runs")
