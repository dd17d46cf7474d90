"""The record of what was executed, on disk: it survives the process that wrote it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Executions", "Ledger", "read_ledgers"]

SUFFIX = ".ledger"


class Ledger:
    """One process's file, which is only appended to: a line as an execution begins, and one as it has ended.

    Each line is one write of its own, and with the kernel before the handler goes on: kill -9 takes none of it back.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    @contextmanager
    def entry(self, key: str) -> Iterator[None]:
        """Record an execution; one that is cancelled or fails has no end."""
        os.write(self._file, f"begun {key}\n".encode())
        yield
        os.write(self._file, f"ended {key}\n".encode())


@dataclass
class Executions:
    """What all ledgers say together: how often each key's handler was begun and was ended."""

    begun: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)


def read_ledgers(folder: Path) -> Executions:
    """Read every ledger of a folder. Raises ValueError for a line that is not whole."""
    executions = Executions()
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        text = path.read_text()
        if text and not text.endswith("\n"):
            raise ValueError(f"the last line of {path.name} is torn: {text[-80:]!r}")
        for line in text.splitlines():
            what, key = line.split(maxsplit=1)
            {"begun": executions.begun, "ended": executions.ended}[what][key] += 1
    return executions
