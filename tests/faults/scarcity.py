"""What can run out, or fail, on a real machine: descriptors, system calls, memory.

    async with open_serving(spare=3) as serving: ...              # a server process with three more descriptors
    async with open_serving(failing(["accept4"], "ENFILE", "1..3")) as serving: ...
    with memory_limit(200 * MIB) as group: subprocess.run(group.command(sys.executable, "greedy.py"))

Limits of a process go to its children: so what is to be short of something is a process of its own, which lowers its
own limit (`tests.faults.serving`), and the test's process keeps what it has. Only soft limits are lowered: who starts
children from there can raise them again.

Where the machine cannot do it, `Unavailable` says why.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from tests.faults.namespaces import Unavailable

__all__ = ["MemoryGroup", "Serving", "Unavailable", "failing", "memory_limit", "open_serving"]

ROOT: Final = Path(__file__).resolve().parents[2]
START: Final = 30.0
"""Seconds until a process has imported the library and listens, under strace too."""
END: Final = 15.0
"""Seconds until one that was told to end has ended, before it is killed."""
CGROUPS: Final = Path("/sys/fs/cgroup")

_numbers = itertools.count(1)


# -- system calls --------------------------------------------------------------------------------------------------


def failing(calls: Sequence[str], error: str, when: str = "1+") -> list[str]:
    """The beginning of a command line, under which these system calls fail: the first three with `when="1..3"`.

    They are not made then, so nothing is lost by it: a connection that could not be accepted is still in its queue.
    """
    _check_strace()
    names = ",".join(calls)
    traced = ["-e", f"trace={names}", "-e", f"inject={names}:error={error}:when={when}"]
    return ["strace", "-f", "--seccomp-bpf", "-qqq", "-o", "/dev/null", *traced]


@functools.cache
def _strace_complaint() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed here"
    probe = ["strace", "-f", "--seccomp-bpf", "-qqq", "-e", "inject=getppid:error=EPERM", "-o", "/dev/null"]
    done = subprocess.run([*probe, "true"], capture_output=True, text=True, check=False, timeout=START)
    said = done.stderr.strip().partition("\n")[0]
    return f"strace cannot trace here: {said}" if done.returncode else ""


def _check_strace() -> None:
    if complaint := _strace_complaint():
        raise Unavailable(complaint)


# -- a server in a process of its own ------------------------------------------------------------------------------


@attrs.define
class Serving:
    """A server process under way."""

    addresses: list[str]
    pid: int
    status: int | None = None
    """What it has ended with; None as long as it runs."""
    complaints: list[str] = attrs.Factory(list)
    """What it had logged in the end, from WARNING on, and whatever else went to its standard error."""


@asynccontextmanager
async def open_serving(
    under: Sequence[str] = (),
    *,
    places: Sequence[str] = ("tcp://127.0.0.1:0",),
    spare: int | None = None,
    **limits: Any,
) -> AsyncIterator[Serving]:
    """A process that serves `tests.faults.serving.Desk`, with these ServerLimits. It ends cleanly with the block.

    `under`: what its command line begins with. `spare`: it may open so many descriptors beyond those that it has when
    it listens; without, as many as this process.
    """
    told = json.dumps({"places": list(places), "spare": spare, "limits": limits})
    command = [*under, sys.executable, "-X", "dev", "-m", "tests.faults.serving", told]
    with tempfile.TemporaryFile("w+") as errors:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT
        )
        assert process.stdin is not None
        assert process.stdout is not None
        serving = Serving([], process.pid)
        try:
            with trio.fail_after(START):
                line = b""
                while not line.endswith(b"\n"):
                    more = await process.stdout.receive_some()
                    if not more:
                        raise EOFError("the server process has ended before it listened")
                    line += more
            serving.addresses = json.loads(line)
            yield serving
        finally:
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()  # Its word that it is to end.
                with trio.move_on_after(END):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                serving.status = await process.wait()
                await process.stdout.aclose()
            errors.seek(0)
            serving.complaints = errors.read().splitlines()


# -- memory ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class MemoryGroup:
    """A control group whose processes may have so much memory together; beyond, the kernel kills one of them."""

    path: Path
    unified: bool

    def command(self, *words: str) -> list[str]:
        """The command line that runs a command in here; its process is the command's own."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs"), *words]

    @property
    def peak(self) -> int:
        """The most bytes that there ever were; 0 if this kernel does not tell."""
        file = self.path / ("memory.peak" if self.unified else "memory.max_usage_in_bytes")
        return int(file.read_text()) if file.exists() else 0


@contextmanager
def memory_limit(size: int) -> Iterator[MemoryGroup]:
    """A memory control group, below our own, of version 1 or 2; removed when the block ends, with what runs in it killed."""
    group = _make_group(size)
    try:
        yield group
    finally:
        for _ in range(100):
            for pid in (group.path / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            with contextlib.suppress(OSError):
                group.path.rmdir()
                break
            subprocess.run(["sleep", "0.05"], check=False)


def _make_group(size: int) -> MemoryGroup:
    parent, unified = _own_group()
    path = parent / f"trio-rpc-test-{os.getpid()}-{next(_numbers)}"
    try:
        path.mkdir()
    except OSError as exc:
        raise Unavailable(f"no control group can be made here: {exc.strerror}") from exc
    try:
        (path / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(size))
        # Without swap, where that is counted; else a limit makes things slow, and nothing ends.
        swap = path / ("memory.swap.max" if unified else "memory.memsw.limit_in_bytes")
        with contextlib.suppress(OSError):
            swap.write_text("0" if unified else str(size))
    except OSError as exc:
        path.rmdir()
        raise Unavailable(f"memory cannot be limited here: {exc.strerror}") from exc
    return MemoryGroup(path, unified)


def _own_group() -> tuple[Path, bool]:
    """The group that this process is in, by the hierarchy that limits memory; and whether that is version 2."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError as exc:
        raise Unavailable("there are no control groups here") from exc
    for number, controllers, path in lines:
        if "memory" in controllers.split(",") and (CGROUPS / "memory").is_dir():
            return CGROUPS / "memory" / path.lstrip("/"), False
        if number == "0" and "memory" in _words(CGROUPS / path.lstrip("/") / "cgroup.subtree_control"):
            return CGROUPS / path.lstrip("/"), True
    raise Unavailable("no control group limits memory here")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
