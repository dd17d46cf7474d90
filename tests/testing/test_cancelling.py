"""Cancelling everywhere: each checkpoint once, exactly there, and whatever it breaks comes out."""

from __future__ import annotations

from typing import Literal

import pytest
import trio
import trio.lowlevel
import trio.testing

from trio_rpc.testing import cancel_at_every_checkpoint

Moment = Literal["suspending", "waking"]


@pytest.mark.parametrize(
    ("moment", "seen"),
    [
        ("suspending", [[], [0], [0, 1], [0, 1, 2]]),  # the wait itself is aborted
        ("waking", [[0], [0, 1], [0, 1, 2], [0, 1, 2]]),  # the wait has succeeded, the next checkpoint raises
    ],
)
async def test_each_checkpoint_once(moment: Moment, seen: list[list[int]]) -> None:
    """A scenario of three waits is cancelled in each of them, exactly there, and then runs through."""
    runs: list[list[int]] = []

    async def scenario() -> None:
        runs.append([])
        for step in range(3):
            event = trio.Event()
            trio.lowlevel.current_trio_token().run_sync_soon(event.set)
            await event.wait()
            runs[-1].append(step)

    assert await cancel_at_every_checkpoint(scenario, moment=moment) == 3
    assert runs == seen


async def test_a_bug_between_two_awaits_is_found() -> None:
    """A token that is lost by a cancellation in one certain place makes `check` fail, with the place in a note."""
    tokens = trio.Semaphore(1)

    async def leaky() -> None:
        await trio.lowlevel.checkpoint()
        await tokens.acquire()
        await trio.lowlevel.checkpoint()  # cancelled here or as `acquire` returned, nobody gives the token back
        tokens.release()

    async def check() -> None:
        assert tokens.value == 1

    with pytest.raises(AssertionError) as caught:
        await cancel_at_every_checkpoint(leaky, check)
    assert caught.value.__notes__ == ["(cancelled suspending at checkpoint 2)"]


async def test_check_follows_every_run() -> None:
    """`check` is awaited after the cancelled runs and after the last one."""
    log: list[str] = []

    async def scenario() -> None:
        log.append("run")
        await trio.lowlevel.checkpoint()

    async def check() -> None:
        log.append("check")

    visited = await cancel_at_every_checkpoint(scenario, check)
    assert log == ["run", "check"] * (visited + 1)


async def test_only_its_own_task_unless_asked() -> None:
    """The checkpoints of spawned tasks count with `spawned=True`; those of tasks spawned elsewhere never do."""

    async def child() -> None:
        for _ in range(5):
            await trio.sleep(0.001)

    async def scenario() -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(child)
            outer.start_soon(child)

    async with trio.open_nursery() as outer:
        own = await cancel_at_every_checkpoint(scenario)
        every = await cancel_at_every_checkpoint(scenario, spawned=True)
    assert every == own + 5


async def test_a_shielded_part_runs_on() -> None:
    """Cancelled inside a shield, the scenario ends as the shield says, and is still cancelled at the places after."""
    finished: list[bool] = []

    async def scenario() -> None:
        finished.append(False)
        with trio.CancelScope(shield=True):
            await trio.sleep(0.001)
            await trio.sleep(0.001)
        finished[-1] = True
        await trio.sleep(0.001)

    assert await cancel_at_every_checkpoint(scenario) == 3
    assert finished == [True] * 4


async def test_the_scenarios_own_failure_comes_out_bare() -> None:
    """The very exception, not a group, with a note of the checkpoint."""
    error = ValueError("could not tidy up")

    async def scenario() -> None:
        try:
            await trio.sleep(0.001)
        except trio.Cancelled:
            raise error from None

    with pytest.raises(ValueError, match="tidy") as caught:
        await cancel_at_every_checkpoint(scenario)
    assert caught.value is error
    assert error.__notes__ == ["(cancelled suspending at checkpoint 1)"]


async def test_a_failure_without_us_is_told_so() -> None:
    """A scenario that fails uncancelled fails with a note that says so."""

    async def scenario() -> None:
        raise ValueError("broken from the start")

    with pytest.raises(ValueError, match="broken") as caught:
        await cancel_at_every_checkpoint(scenario)
    assert caught.value.__notes__ == ["(in the uncancelled run)"]


async def test_a_cancellation_from_outside_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    """The caller's own scope ends the whole, as it would anything else."""

    async def deaf() -> None:
        with trio.move_on_after(10, shield=True):
            await trio.sleep_forever()

    with trio.move_on_after(1) as scope:
        await cancel_at_every_checkpoint(deaf)
    assert scope.cancelled_caught
    assert trio.current_time() == 10


async def test_an_endless_scenario() -> None:
    """A scenario that has always one more checkpoint is given up."""
    length = 0

    async def longer_each_time() -> None:
        nonlocal length
        length += 1
        for _ in range(length):
            await trio.lowlevel.checkpoint()

    with pytest.raises(AssertionError, match="after 20 runs"):
        await cancel_at_every_checkpoint(longer_each_time, limit=20)


async def test_the_moment_is_one_of_two() -> None:
    """A misspelt moment is told at once."""
    with pytest.raises(ValueError, match='"suspending" or "waking"'):
        await cancel_at_every_checkpoint(trio.lowlevel.checkpoint, moment="sometimes")  # type: ignore[arg-type]
