"""The supervisor: worker processes, each with a pool of connections to it, for the length of a block."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import trio

import trio_rpc

from .contract import Search

HEARTBEAT = trio_rpc.Heartbeat(interval=0.5, timeout=0.5)
"""A worker that is silent for a second is given up. Short, for a demo; the default is 10 s and 5 s."""
LIMITS = trio_rpc.PoolLimits(
    max_connections=1,  # calls share one connection; a worker has one thread to search with anyhow
    acquire_timeout=0.2,  # an unreachable worker is missing at once: a partial answer now beats a whole one later
    connect_timeout=1,
    connect_backoff=trio_rpc.Backoff(initial=0.1, maximum=0.5),
    cancel_wait=0.5,  # bounds the wait for a frozen worker when the demo is interrupted
)
ONE_ATTEMPT = trio_rpc.RetryPolicy(attempts=1)
"""The contract would allow a search to be repeated; the gateway answers without that share instead."""

READY_TIMEOUT = 60.0
"""Seconds that a worker may take to index its share."""
END_TIMEOUT = 2.0
"""Seconds that a worker may take to end by itself before it is killed."""
PROJECT = Path(__file__).resolve().parents[2]
"""Where `python -m examples.codesearch` works."""


class WorkerFailed(Exception):
    """A worker did not become ready; the text is one sentence."""


@attrs.frozen(eq=False)
class Worker:
    """A worker that is ready, and the way to it."""

    name: str
    """The share that it searches."""
    process: trio.Process
    pool: trio_rpc.Pool
    """The connection to it, kept and replaced."""

    @property
    def search(self) -> Search:
        """The remote service, typed as the contract."""
        return self.pool.stub(Search, retry=ONE_ATTEMPT)

    def freeze(self) -> None:
        """Stop the process where it stands. Its sockets stay open, and nothing answers there."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on. Harmless if it was not frozen."""
        self.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def open_fleet(root: Path, count: int) -> AsyncIterator[Sequence[Worker]]:
    """Start so many workers over the sources below `root`; the block begins when all of them can be searched.

    Leaving the block, however that happens, ends them: no process is left. Raises WorkerFailed if one does not
    become ready.
    """
    processes: dict[str, trio.Process] = {}
    try:
        for number in range(1, count + 1):
            processes[f"share {number}"] = await _start(root, number, count)
        async with AsyncExitStack() as stack:
            workers = []
            for name, process in processes.items():  # they index side by side: in all we wait for the slowest alone
                address = await _wait_ready(name, process)
                pool = trio_rpc.open_pool(address, heartbeat=HEARTBEAT, limits=LIMITS)
                workers.append(Worker(name, process, await stack.enter_async_context(pool)))
            for worker in workers:
                await worker.pool.wait_connected()
            yield workers
    finally:
        # Shielded: Ctrl-C cancels everything here, and the processes have to go all the same. END_TIMEOUT bounds it.
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for process in processes.values():
                    nursery.start_soon(_end, process)


async def _start(root: Path, number: int, of: int) -> trio.Process:
    command = [sys.executable, "-m", "examples.codesearch", "worker"]
    arguments = ["--share", str(number), "--of", str(of), "--root", str(root)]
    # A process group of its own: a terminal's Ctrl-C reaches us alone, and we end the workers in order. And should we
    # be killed while one is frozen, the system wakes it: an orphaned group with a stopped member gets SIGHUP and
    # SIGCONT, says POSIX.
    return await trio.lowlevel.open_process(
        [*command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
        process_group=0,
    )


async def _wait_ready(name: str, process: trio.Process) -> str:
    """The worker's address, when it serves there. Raises WorkerFailed."""
    assert process.stdout is not None
    said = b""
    with trio.move_on_after(READY_TIMEOUT) as patience:
        async for chunk in process.stdout:
            said += chunk
            if said.endswith(b"\n"):
                return said.decode().strip()
    if patience.cancelled_caught:
        raise WorkerFailed(f"the worker of {name} was not ready within {READY_TIMEOUT:g} s")
    raise WorkerFailed(f"the worker of {name} ended with exit code {await process.wait()} before it was ready")


async def _end(process: trio.Process) -> None:
    """Have a worker end, by itself or else by force. Returns when the process is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.send_signal(signal.SIGCONT)  # frozen, it would not see that its input has ended
    await process.stdin.aclose()
    with trio.move_on_after(END_TIMEOUT):
        await process.wait()
    process.kill()  # does nothing to a process that has ended
    await process.wait()
    await process.stdout.aclose()
