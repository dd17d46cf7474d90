"""Server processes: started, drained, killed by their own ids, started again at the same address, and always reaped."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from benchmarks.measure import cpu_of

from .ledger import SUFFIX, Executions, read_ledgers
from .report import Report

__all__ = ["ServerFailed", "ServerProcess", "Servers", "open_servers"]

ROOT = Path(__file__).resolve().parents[2]
START = 30.0
"""Seconds until a process has imported the library and listens."""
END = 20.0
"""Seconds until a process that was asked to has ended: the grace of its drain, and as much again."""


class ServerFailed(Exception):
    """One sentence: what a server process did not do."""


class ServerProcess:
    """A server at one address, in one process after the other.

    Attributes:
        address: where it listens, from its first start on.
        starts: processes that there have been.
    """

    def __init__(self, name: str, folder: Path, pace: float = 0.0) -> None:
        self.name = name
        self.address = "tcp://127.0.0.1:0"
        self.starts = 0
        self._folder = folder
        self._pace = pace
        self._process: trio.Process | None = None

    @property
    def complaints(self) -> str:
        """What its processes wrote to their standard error, in all."""
        return "".join(path.read_text() for path in sorted(self._folder.glob(f"{self.name}-*.stderr")))

    async def start(self) -> None:
        """Start a process; returns when it listens. Its ledger is one of its own."""
        assert self._process is None
        self.starts += 1
        ledger = self._folder / f"{self.name}-{self.starts:03}{SUFFIX}"
        command = [sys.executable, "-m", "tests.proofs.server", self.address, str(ledger), str(self._pace)]
        with ledger.with_suffix(".stderr").open("wb") as errors:
            # A group of its own: a terminal's Ctrl-C reaches us alone, and we end it.
            self._process = await trio.lowlevel.open_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, process_group=0
            )
        try:
            self.address = await self._listening(self._process)
        except BaseException:
            await self.kill()
            raise

    async def _listening(self, process: trio.Process) -> str:
        assert process.stdout is not None
        said = b""
        with trio.move_on_after(START):
            async for data in process.stdout:
                said += data
                if said.endswith(b"\n"):
                    return said.decode().strip()
            raise ServerFailed(f"{self.name} ended with exit code {await process.wait()}: {self.complaints[-300:]}")
        raise ServerFailed(f"{self.name} did not listen within {START:g} s")

    async def stop(self) -> None:
        """SIGTERM, and wait for its own end. Raises ServerFailed if it does not end, or not with 0."""
        assert self._process is not None
        self.signal(signal.SIGTERM)
        with trio.move_on_after(END) as patience:
            await self._process.wait()
        code = self._process.returncode
        await self.kill()
        if patience.cancelled_caught:
            raise ServerFailed(f"{self.name} did not end within {END:g} s after SIGTERM")
        if code:
            raise ServerFailed(f"{self.name} ended with exit code {code}: {self.complaints[-300:]}")

    def cpu(self) -> float:
        """CPU seconds of its process until now."""
        assert self._process is not None
        return cpu_of(self._process.pid)

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def let_go(self) -> None:
        """Close its standard input, as the end of this process would."""
        assert self._process is not None
        assert self._process.stdin is not None
        await self._process.stdin.aclose()

    async def wait(self) -> int:
        """Wait for its own end; returns its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL, and reap it. Does nothing where there is no process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with trio.CancelScope(shield=True):  # Killed, it ends at once.
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()


class Servers(list[ServerProcess]):
    """Some servers, with one folder for what they write."""

    def __init__(self, folder: Path, paces: Iterable[float]) -> None:
        super().__init__(ServerProcess(f"server-{number}", folder, pace) for number, pace in enumerate(paces, start=1))
        self._folder = folder

    @property
    def addresses(self) -> list[str]:
        """Where they listen."""
        return [server.address for server in self]

    def executions(self) -> Executions:
        """What their ledgers say together."""
        return read_ledgers(self._folder)

    def judge(self, report: Report) -> None:
        """Report whether they had anything to complain of."""
        said = [server.complaints for server in self if server.complaints]
        report.check("no server wrote anything to its standard error", not said)
        report.details += [text[-1000:] for text in said]


@asynccontextmanager
async def open_servers(paces: Iterable[float]) -> AsyncIterator[Servers]:
    """Run a server for each pace, for the length of a block; they are started side by side."""
    with tempfile.TemporaryDirectory(prefix="proofs-") as folder:
        servers = Servers(Path(folder), paces)
        try:
            async with trio.open_nursery() as nursery:
                for server in servers:
                    nursery.start_soon(server.start)
            yield servers
        finally:
            for server in servers:
                await server.kill()
