"""An honest client in a process of its own: who looks on while others are attacked, and who asks for very much."""

from __future__ import annotations

import os
import signal
from typing import Any

import trio

import trio_rpc

from .census import census
from .load import WrongAnswer, due
from .parts import answer_commands, run_part, until
from .report import percentile
from .target import Target

__all__ = ["PATIENT"]

RATE = 100
"""Echoes a second, whatever becomes of the ones before."""
PATIENT = 10.0
"""Seconds after which an echo that has no answer counts as an error."""
ONLY_ONCE = trio_rpc.RetryPolicy(attempts=1, refusals=False)
"""Nothing that goes wrong is to be hidden by another attempt."""


class Caller:
    """Does what the proof says, on one pool."""

    def __init__(self, pool: trio_rpc.Pool, nursery: trio.Nursery) -> None:
        self.pool = pool
        self.stub = pool.stub(Target)
        self.nursery = nursery
        self.looking = trio.CancelScope()
        self.under_way = 0
        self.latencies: list[float] = []
        self.errors: list[str] = []

    # -- the victim ------------------------------------------------------------------------------------------------

    async def look_on(self) -> None:
        """Begin to call, at a steady rate."""
        self.looking = trio.CancelScope()
        self.nursery.start_soon(self._keep_calling, self.looking)

    async def rest(self) -> None:
        """Call no more for the moment, and have a new connection, on which there has been no call yet."""
        self.looking.cancel()
        await until(lambda: not self.under_way)
        self.pool.recycle()
        await until(lambda: (stats := self.pool.statistics()).connections == stats.idle == 1 and not stats.dialling)

    async def _keep_calling(self, scope: trio.CancelScope) -> None:
        moment = trio.current_time()
        number = 0
        with scope:
            while True:
                number, moment = number + 1, moment + 1 / RATE
                await trio.sleep_until(moment)
                self.under_way += 1
                self.nursery.start_soon(self._echo, f"echo {number}", moment)

    async def _echo(self, text: str, moment: float) -> None:
        """One call. Its latency counts from when it was due, so that no slow answer hides what others would have seen."""
        try:
            with trio.fail_after(PATIENT):
                due(await self.stub.echo(text), text)
        except (trio_rpc.RpcError, trio.TooSlowError, WrongAnswer) as exc:
            self.errors.append(repr(exc))
        else:
            self.latencies.append(trio.current_time() - moment)
        finally:
            self.under_way -= 1

    async def report(self) -> dict[str, Any]:
        """What it saw since the last report."""
        latencies, errors = self.latencies, self.errors
        self.latencies, self.errors = [], []
        times = [percentile(latencies, share) for share in (0.5, 0.99, 1)] if latencies else [0.0] * 3
        return {
            "calls": len(latencies) + len(errors),
            "errors": errors[:10],
            "failed": len(errors),
            "lost": self.pool.statistics().lost,
            **dict(zip(("p50", "p99", "longest"), times, strict=True)),
        }

    # -- much at once ----------------------------------------------------------------------------------------------

    async def crowd(self, calls: int) -> None:
        """Begin so many calls; returns when all of them are under way."""
        self.answers: list[int] = []
        for number in range(calls):
            self.nursery.start_soon(self._wait, number)
        await until(lambda: self.pool.statistics().in_flight >= calls)

    async def _wait(self, number: int) -> None:
        try:
            due(await self.stub.wait(number), number)
        except (trio_rpc.RpcError, WrongAnswer) as exc:
            self.errors.append(repr(exc))
        else:
            self.answers.append(number)

    async def answered(self, calls: int) -> dict[str, Any]:
        """Wait until all have come back."""
        await until(lambda: len(self.answers) + len(self.errors) >= calls)
        return {"answered": len(set(self.answers)), "errors": self.errors[:10], "failed": len(self.errors)}

    async def demand(self, calls: int, size: int) -> None:
        """Ask for so many large results at once. When the first has come, this process stops itself."""
        for _ in range(calls):
            self.nursery.start_soon(self._demand, size)

    async def _demand(self, size: int) -> None:
        await self.stub.large(size)
        os.kill(os.getpid(), signal.SIGSTOP)

    async def census(self) -> dict[str, int]:
        """What this process holds."""
        return census()


async def main(address: str, limits: dict[str, Any] | None = None) -> None:
    """Do what the proof says, until the input ends."""
    bounds = trio_rpc.PoolLimits(**{"max_connections": 1, **(limits or {})})
    async with (
        trio.open_nursery() as nursery,
        trio_rpc.open_pool(address, limits=bounds, retry=ONLY_ONCE) as pool,
    ):
        await pool.wait_connected()
        caller = Caller(pool, nursery)
        commands = (
            caller.look_on,
            caller.rest,
            caller.report,
            caller.crowd,
            caller.answered,
            caller.demand,
            caller.census,
        )
        await answer_commands({command.__name__: command for command in commands})
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    run_part(main)
