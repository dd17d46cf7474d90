"""A peer's processes: started, spoken to line by line, and killed by their own ids.

Everything here is bounded: a peer that does not start, does not answer or ends early becomes `PeerFailed`, with the
last line of its stderr, and costs the run nothing but its own column.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import IO, Any

import trio

from .environments import ROOT, python_of
from .measure import Command, Sample, cpu_of
from .registry import PEERS
from .workloads import Setting

__all__ = ["PeerFailed", "Running", "start_peer"]

START = 60.0
"""Seconds until a process has imported its library and listens."""


class PeerFailed(Exception):
    """One sentence: what a peer did not do."""


class Process:
    """One process; it ends with the block that started it."""

    def __init__(self, process: trio.Process, name: str, errors: IO[bytes]) -> None:
        self.process = process
        self.name = name
        self._errors = errors
        self._rest = b""

    @property
    def pid(self) -> int:
        """Its id."""
        return self.process.pid

    async def answer(self, word: str, within: float) -> str:
        """Wait for the line that begins with `word`; returns what follows. Other lines are passed over."""
        with trio.move_on_after(within):
            while True:
                first, _, rest = (await self._line()).partition(" ")
                if first == word:
                    return rest
        raise PeerFailed(f"{self.name}: no {word!r} within {within:g} s{self._last_words()}")

    async def _line(self) -> str:
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            data = await self.process.stdout.receive_some()
            if not data:
                code = await self.process.wait()
                raise PeerFailed(f"{self.name}: ended with exit code {code}{self._last_words()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace")

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""

    async def say(self, line: str) -> None:
        """Write a line to its stdin."""
        assert self.process.stdin is not None
        try:
            await self.process.stdin.send_all(line.encode() + b"\n")
        except trio.BrokenResourceError as exc:
            raise PeerFailed(f"{self.name}: has ended{self._last_words()}") from exc


@asynccontextmanager
async def start_process(python: str, peer: str, *arguments: str, cpus: Sequence[int] = ()) -> AsyncIterator[Process]:
    """Run `python -m benchmarks.peers PEER ...`, for the length of a block."""
    command = [python, "-m", "benchmarks.peers", peer, *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "GRPC_VERBOSITY": "ERROR"}
    with tempfile.TemporaryFile() as errors:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=variables
        )
        try:
            if cpus:
                os.sched_setaffinity(process.pid, cpus)
            yield Process(process, f"{peer} ({arguments[0]})", errors)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):  # Killed, it ends at once.
                await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await trio.aclose_forcefully(pipe)


class Running:
    """A peer whose servers and client are there: runs one round after the other."""

    def __init__(self, name: str, servers: Sequence[Process], client: Process) -> None:
        self.name = name
        self.servers = servers
        self.client = client

    def cpu(self) -> float:
        """CPU seconds of its processes until now."""
        return sum(cpu_of(process.pid) for process in (*self.servers, self.client))

    async def round(self, command: Command) -> Sample:
        """Run one round. Raises PeerFailed, after which the peer is not to be asked again."""
        await self.client.say(json.dumps(asdict(command)))
        answer: dict[str, Any] = json.loads(await self.client.answer("RESULT", 60 + 4 * command.seconds))
        if "error" in answer:
            raise PeerFailed(f"{self.name}: {answer['error']}")
        return Sample(**answer)


@asynccontextmanager
async def start_peer(name: str, setting: Setting, *, pin: bool = False, here: bool = False) -> AsyncIterator[Running]:
    """Start a peer's servers and then its client; all end with the block.

    With `pin`, servers run on the first CPU and the client on the last. With `here`, this environment is theirs too.
    """
    start = partial(start_process, sys.executable if here else str(python_of(PEERS[name].environment)), name)
    cpus = sorted(os.sched_getaffinity(0)) if pin else []
    async with AsyncExitStack() as stack:
        servers, ports = [], []
        for _ in range(setting.servers):
            server = await stack.enter_async_context(start("server", setting.dump(), cpus=cpus[:1]))
            ports.append(int(await server.answer("PORT", START)))
            servers.append(server)
        told = replace(setting, ports=tuple(ports)).dump()
        pids = [str(server.pid) for server in servers]
        client = await stack.enter_async_context(start("client", told, *pids, cpus=cpus[-1:]))
        await client.answer("READY", START)
        yield Running(name, servers, client)
