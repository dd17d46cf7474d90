"""The files: Python's own standard library, and how it is split among the search services."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

SKIPPED = {"site-packages", "dist-packages", "__pycache__"}
"""Folders below the standard library that are not part of it."""


def standard_library() -> Path:
    """Where the running Python keeps the sources of its standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_paths(root: Path) -> list[str]:
    """All Python files below `root`, relative to it, sorted: the same list in whichever process asks."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = set(folders) - SKIPPED
        found += [Path(folder, name).relative_to(root).as_posix() for name in files if name.endswith(".py")]
    return sorted(found)


def share_of(paths: Sequence[str], number: int, of: int) -> Sequence[str]:
    """Share `number` (from 1) of so many: every file is in exactly one, and big folders are spread over all."""
    return paths[number - 1 :: of]


def read_documents(root: Path, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield `(path, text)`. A few tests of the standard library are not UTF-8 on purpose: they are read as far as
    they can be. A file that has gone meanwhile is left out.
    """
    for path in paths:
        try:
            yield path, (root / path).read_text("utf-8", errors="replace")
        except OSError:
            continue
