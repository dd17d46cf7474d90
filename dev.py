#!/usr/bin/env python3
"""The project's tasks, on any machine that has Python 3.11 or later and git.

    python3.11 dev.py demo            the code search: processes, streams, a frozen worker, its recovery
    python3.11 dev.py bench [ARGS]    side by side with other libraries; `bench run --bars` measures what we promise
    python3.11 dev.py prove [ARGS]    rerun what is promised, and print the figures; `prove --table` writes them down
    python3.11 dev.py test [ARGS]     every check there is: format, lint, types, tests, docs; ARGS go to pytest
    python3.11 dev.py pytest [ARGS]   only the tests
    python3.11 dev.py lint            format and lint        (`dev.py fix` repairs what can be repaired)
    python3.11 dev.py types           mypy, pyright, and completeness of the public types
    python3.11 dev.py docs            the HTML documentation, with warnings as errors
    python3.11 dev.py check           the same as test

The first use builds an environment under `.venv/`, one for each interpreter, and needs a package index that pip can
reach. Nothing outside this folder is changed. Start afresh by deleting `.venv/`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv" / f"{sys.implementation.name}-{platform.python_version()}"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# Twice quiet: only errors.
PIP_INSTALL = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--quiet"]

# What runs is `python -m` each of these, in the environment.
STEPS = {
    "format": ["ruff", "format", "--check", "--quiet", "."],
    "lint": ["ruff", "check", "--quiet", "."],
    "mypy": ["mypy"],
    "pyright": ["pyright"],
    "completeness": ["pyright", "--verifytypes", "trio_rpc", "--ignoreexternal"],
    "pytest": ["pytest"],
    "docs": ["sphinx", "-W", "-E", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html"],
    "fix-lint": ["ruff", "check", "--fix", "--quiet", "."],
    "fix-format": ["ruff", "format", "--quiet", "."],
    "demo": ["examples.codesearch"],
    "bench": ["benchmarks"],
    "prove": ["tests.proofs"],
}
EVERYTHING = ["format", "lint", "mypy", "pyright", "completeness", "pytest", "docs"]
TASKS = {
    "demo": ["demo"],
    "bench": ["bench"],
    "prove": ["prove"],
    "test": EVERYTHING,
    "check": EVERYTHING,
    "pytest": ["pytest"],
    "lint": ["format", "lint"],
    "fix": ["fix-lint", "fix-format"],
    "types": ["mypy", "pyright", "completeness"],
    "docs": ["docs"],
}
TAKES_ARGUMENTS = {"demo", "bench", "prove", "pytest"}
ADVICE = {
    "format": "`dev.py fix` formats the files",
    "lint": "`dev.py fix` repairs what it can; mend the rest by hand",
    "completeness": "annotate the public names that are listed above",
    "pytest": "`dev.py pytest --lf` runs only what failed",
}


class Failed(Exception):
    """One sentence: what failed, and what to do."""


def main(arguments: list[str]) -> int:
    """Run one task; returns the process's exit code."""
    if sys.version_info < (3, 11):  # noqa: UP036 -- this file is run before anything has checked the version
        raise Failed(
            f"Python 3.11 or later is needed and this is {platform.python_version()}: try `python3.11 dev.py`."
        )
    task, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if task not in TASKS:
        print(__doc__)
        return 0 if task in {"help", "-h", "--help"} else 2
    steps = TASKS[task]
    if rest and not TAKES_ARGUMENTS.intersection(steps):
        raise Failed(f"`dev.py {task}` takes no arguments: leave out {' '.join(rest)!r}.")
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    prepare({"cli"} if task == "demo" else {"cli", "fast", "test", "docs"})
    # As an activated environment would: pyright asks the first `python` of the path where the packages are.
    os.environ["PATH"] = os.pathsep.join([str(PYTHON.parent), os.environ.get("PATH", os.defpath)])
    os.environ["PYRIGHT_PYTHON_IGNORE_WARNINGS"] = "1"  # else it asks the network for a newer version of itself
    if task == "demo" and os.name == "posix":
        # The demo takes this process's place, so that every signal and the terminal are its own.
        os.execv(PYTHON, [str(PYTHON), "-m", *STEPS["demo"], *rest])
    return run_steps(steps, rest)


def run_steps(steps: list[str], rest: list[str]) -> int:
    """Run all steps, whichever fail, and sum up; the exit code is the first failure's."""
    failures: dict[str, int] = {}
    for step in steps:
        extra = rest if step in TAKES_ARGUMENTS else []
        command = [str(PYTHON), "-m", *STEPS[step], *extra]
        say(f"{step}: {' '.join(command[2:])}")
        start = time.monotonic()
        code = run(command)
        say(f"{step}: {'passed' if code == 0 else f'FAILED with exit code {code}'}, {time.monotonic() - start:.1f} s")
        if code:
            failures[step] = code
    for step in failures:
        say(f"{step} failed: {ADVICE.get(step, 'its output above says where')}.")
    if not failures:
        say(f"all passed: {', '.join(steps)}.")
    return next(iter(failures.values()), 0)


def run(command: list[str], **environment: str) -> int:
    """Run a command over our own terminal; returns its exit code, as a shell gives it."""
    with subprocess.Popen(command, env={**os.environ, **environment}) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            leave_time(child)
            raise
        except SystemExit:
            child.terminate()  # we were asked to end, by a signal that has not reached the child
            child.wait()
            raise
    return code if code >= 0 else 128 - code


def leave_time(child: subprocess.Popen[bytes]) -> None:
    """Wait for an interrupted child to clean up; each further Ctrl-C reaches it too, through the terminal."""
    try:
        child.wait(timeout=3)
    except subprocess.TimeoutExpired:
        # A terminal interrupts both of us; `kill -INT` only this process, and then the child does not know yet.
        child.send_signal(signal.SIGINT)
    while child.poll() is None:
        try:
            child.wait()
        except KeyboardInterrupt:
            say("waiting for the interrupted step to clean up.")


def prepare(extras: set[str]) -> None:
    """Have an environment with this project and its extras in it; quick when nothing has changed."""
    stamp = VENV / "dev-stamp"
    # The place counts, because a copied tree would go on importing the package of the original.
    inputs = f"{ROOT}\n{sys.base_prefix}\n".encode() + (ROOT / "pyproject.toml").read_bytes()
    fingerprint = hashlib.sha256(inputs).hexdigest()
    known, *installed = (stamp.read_text() if stamp.exists() else "").split() or [""]
    if known != fingerprint:
        installed = []
    if PYTHON.exists() and extras.issubset(installed):
        return
    say(f"preparing {VENV.relative_to(ROOT)} (once; about a minute)")
    if not (PYTHON.exists() and stamp.exists()):
        create_environment()
    wanted = sorted(extras.union(installed))
    if run([str(PYTHON), *PIP_INSTALL, "--editable", f".[{','.join(wanted)}]"]):
        raise Failed(
            "pip could not install the project (see above): let it reach a package index, then run this again."
        )
    stamp.write_text(" ".join([fingerprint, *wanted]))


def create_environment() -> None:
    """Create the virtual environment, also where the system's Python comes without `venv` or `ensurepip`."""
    # In a process of its own, with its output kept back: Debian's refusal is long, and tells to become root.
    venv = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    if subprocess.run(venv, capture_output=True, check=False).returncode == 0:
        return
    bootstrap = VENV.with_name("bootstrap")
    say("this Python has no venv module: fetching virtualenv instead")
    if run([sys.executable, *PIP_INSTALL, "--upgrade", "--target", str(bootstrap), "virtualenv"]):
        raise Failed(
            f"no environment can be made with {sys.executable}, which has neither venv nor pip: "
            "install them (Debian: `apt install python3-venv`), then run this again."
        )
    if run([sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(VENV)], PYTHONPATH=str(bootstrap)):
        raise Failed(f"virtualenv could not make {VENV} (see above): delete `.venv`, then run this again.")


def say(text: str) -> None:
    """Print one line of our own, in order with what the steps print."""
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failed as failure:
        say(str(failure))
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted.")
        sys.exit(130)
