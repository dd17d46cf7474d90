"""Where each peer is installed: one virtual environment under `.venv/` for each row, made when it is first needed.

No foreign library ever enters the environment that the project's tests run in, and our own peer is measured in one
that holds the default install and nothing else. Start afresh by deleting `.venv/bench-*`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["ENVIRONMENTS", "ROOT", "EnvironmentFailed", "prepare", "python_of", "versions"]

ROOT = Path(__file__).resolve().parents[1]

ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    # name -> what pip installs into it. "." is this project, editable.
    "trio-rpc": (".",),
    "trio-rpc-fast": (".[fast]",),
    "limits": ("trio==0.35.0", "msgpack==1.2.4", "msgspec==0.22.0", "uvloop==0.23.0"),
    # Foreign libraries, pinned: a table of results names what was measured.
    "grpc": ("grpcio==1.85.1", "grpcio-tools==1.85.1", "protobuf==7.36.2", "grpclib==0.4.9", "uvloop==0.23.0"),
    "purerpc": ("purerpc==0.8.0", "grpcio-tools==1.85.1", "protobuf==7.36.2", "trio==0.35.0"),  # wants an old h2
    "rpyc": ("rpyc==6.0.2",),
    "pyro5": ("Pyro5==5.17", "msgpack==1.2.4"),
    "zerorpc": ("zerorpc==0.6.3", "msgpack==1.2.4"),
    "aiohttp": ("aiohttp==3.14.5", "uvloop==0.23.0"),
    "httpx": ("httpx[http2]==0.28.1", "hypercorn[trio]==0.18.0", "trio==0.35.0"),
}


class EnvironmentFailed(Exception):
    """One sentence: which environment could not be made, and pip's last words."""


def python_of(name: str) -> Path:
    """The interpreter of an environment, made or not."""
    return _folder(name) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _folder(name: str) -> Path:
    return ROOT / ".venv" / f"bench-{name}"


def prepare(name: str) -> Path:
    """Have the environment; returns its interpreter. Quick when nothing has changed."""
    requirements = ENVIRONMENTS[name]
    stamp = _folder(name) / "bench-stamp"
    fingerprint = _fingerprint(requirements)
    if not (stamp.exists() and stamp.read_text() == fingerprint):
        print(f"benchmarks: preparing .venv/bench-{name} (once): {' '.join(requirements)}", file=sys.stderr, flush=True)
        # Without pip of its own: quicker, and there are systems whose `venv` cannot bring it.
        _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(_folder(name))], name)
        _run(_pip(name, "install", "--quiet", *_arguments(requirements)), name)
        stamp.write_text(fingerprint)
    return python_of(name)


def versions(name: str) -> dict[str, str]:
    """What is installed in a prepared environment: package -> version."""
    installed = json.loads(_run(_pip(name, "list", "--format=json"), name))
    return {package["name"]: package["version"] for package in installed}


def _pip(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python_of(name)), *arguments]


def _arguments(requirements: Iterable[str]) -> list[str]:
    arguments: list[str] = []
    for requirement in requirements:
        arguments += ["--editable", requirement] if requirement.startswith(".") else [requirement]
    return arguments


def _fingerprint(requirements: tuple[str, ...]) -> str:
    """Changes with all that decides what is installed; the project's own place and dependencies among it."""
    inputs = [str(ROOT), sys.base_prefix, platform.python_version(), *requirements]
    if any(requirement.startswith(".") for requirement in requirements):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        inputs += [*project["dependencies"], *project["optional-dependencies"]["fast"]]
    return hashlib.sha256("\n".join(inputs).encode()).hexdigest()


def _run(command: list[str], name: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise EnvironmentFailed(
            f"the environment {name!r} could not be made, so its peers are left out: {words[-1]} "
            "(needed: a Python with venv, and a package index that pip can reach)"
        )
    return done.stdout
