"""The processes that a proof is made of: each is told what to do, in a line of JSON, and answers with another one.

Whatever becomes of the proof, none of them is left: their standard input is held by it alone, and they end with that.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import trio

from benchmarks.measure import cpu_of, rss_of
from tests.faults.scarcity import MemoryGroup

from .report import Report

__all__ = ["MIB", "Commands", "Part", "PartFailed", "Parts", "answer_commands", "open_parts", "run_part", "until"]

ROOT = Path(__file__).resolve().parents[2]
START = 30.0
"""Seconds until a process has imported the library and says that it is ready."""
MIB = 2**20
Commands: TypeAlias = Mapping[str, Callable[..., Awaitable[Any]]]


class PartFailed(Exception):
    """One sentence: what a process did not do."""


class Part:
    """One process, as the proof sees it."""

    def __init__(self, name: str, process: trio.Process, errors: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.name = name
        self.pid = process.pid
        self._process = process
        self._input, self._output = process.stdin, process.stdout
        self._errors = errors
        self._said = bytearray()

    async def ask(self, command: str, **arguments: Any) -> Any:
        """Have it do something, and wait for what comes of it. Raises PartFailed for what it raises, or if it ends."""
        try:
            await self._input.send_all(json.dumps([command, arguments]).encode() + b"\n")
        except trio.BrokenResourceError:
            raise PartFailed(await self._why()) from None
        return await self.hear()

    async def hear(self) -> Any:
        """The next answer."""
        while b"\n" not in self._said:
            data = await self._output.receive_some()
            if not data:
                raise PartFailed(await self._why())
            self._said += data
        line, _, rest = self._said.partition(b"\n")
        self._said = bytearray(rest)
        answer = json.loads(line)
        if "error" in answer:
            raise PartFailed(f"{self.name}: {answer['error']}")
        return answer["value"]

    async def _why(self) -> str:
        code = await self._process.wait()
        return f"{self.name} ended with exit code {code}: {self.complaints[-1000:]}"

    @property
    def complaints(self) -> str:
        """What it wrote to its standard error."""
        return self._errors.read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        """True while it runs."""
        return self._process.poll() is None

    def memory(self) -> int:
        """Its resident bytes."""
        return rss_of(self.pid)

    def peak(self) -> int:
        """The most that it ever had; see `forget_peak`."""
        return _status(self.pid, "VmHWM")

    def forget_peak(self) -> int:
        """Count the peak from now on; returns what it has now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.memory()

    def cpu(self) -> float:
        """CPU seconds until now."""
        return cpu_of(self.pid)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and reap it; returns when the kernel has closed what it had."""
        self._process.kill()
        with trio.CancelScope(shield=True):  # Killed, it ends at once.
            await self._process.wait()
            await self._input.aclose()
            await self._output.aclose()


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise ValueError(f"process {pid} has no {field}")


class Parts:
    """Starts processes, and ends all of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.all: list[Part] = []

    async def start(self, module: str, *, group: MemoryGroup | None = None, **options: Any) -> tuple[Part, Any]:
        """Start `python -m tests.proofs.MODULE OPTIONS`; returns when it is ready, with what it says then.

        `group`: whose memory it shares.
        """
        name = f"{module}-{len(self.all) + 1}"
        command = [sys.executable, "-m", f"tests.proofs.{module}", json.dumps(options)]
        if group is not None:
            command = group.command(*command)
        errors = self._folder / f"{name}.stderr"
        with errors.open("wb") as file:
            # A group of its own: a terminal's Ctrl-C reaches us alone, and we end it.
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, cwd=ROOT, process_group=0
            )
        part = Part(name, process, errors)
        self.all.append(part)
        with trio.move_on_after(START):
            return part, await part.hear()
        raise PartFailed(f"{name} was not ready within {START:g} s: {part.complaints[-300:]}")

    def judge_logs(self, report: Report, server: Part) -> None:
        """Report whether the server logged an error, or wrote what no logger wrote."""
        lines = server.complaints.splitlines()
        wrong = [line for line in lines if not line.startswith(("WARNING ", "INFO "))]
        report.check(f"errors or tracebacks in the server's log: {len(wrong)}", not wrong)
        report.details.append(f"{len(lines):,} lines in the server's log")
        report.details += wrong[:10]

    async def kill(self) -> None:
        """End all."""
        for part in self.all:
            await part.kill()


@asynccontextmanager
async def open_parts() -> AsyncIterator[Parts]:
    """Processes for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="proofs-") as folder:
        parts = Parts(Path(folder))
        try:
            yield parts
        finally:
            await parts.kill()


async def until(reached: Callable[[], bool], pause: float = 0.05) -> None:
    """Wait for what nothing tells the moment of."""
    while not reached():  # noqa: ASYNC110
        await trio.sleep(pause)


# -- the other side ----------------------------------------------------------------------------------------------------


async def answer_commands(commands: Commands, ready: Any = None) -> None:
    """Be such a process: say that it is ready, and do what each line says, until the input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _say(value=ready)
    said = bytearray()
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as pipe:
        async for data in pipe:
            said += data
            while b"\n" in said:
                line, _, rest = said.partition(b"\n")
                said = bytearray(rest)
                command, arguments = json.loads(line)
                try:
                    _say(value=await commands[command](**arguments))
                except Exception as exc:
                    _say(error=f"{command}: {exc!r}")


def _say(**answer: Any) -> None:
    # Written to the end whatever the other commands' tasks do meanwhile; an answer fits into a pipe.
    print(json.dumps(answer), flush=True)


def run_part(main: Callable[..., Awaitable[None]]) -> None:
    """Run it with the options of the command line, out of reach of the terminal's Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    options: dict[str, Any] = json.loads(sys.argv[1])

    async def start() -> None:
        await main(**options)

    trio.run(start)
