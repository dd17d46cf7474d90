"""The addresses in a file that somebody else keeps up to date."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TypeAlias

import trio

from .._endpoint import Endpoint, endpoints
from ._polled import Polled

__all__ = ["parse", "watched_file"]

LARGEST = 16 * 1024 * 1024
"""Bytes. A list of addresses is never that long: somebody has given the wrong file."""

GRANULARITY = 2.0
"""Seconds. File systems give times in steps, FAT in the longest: a file may be written twice within one."""

Signature: TypeAlias = tuple[int, int, int, int]


def watched_file(path: str | os.PathLike[str], *, interval: float = 1.0) -> Polled:
    """Resolve to the endpoints that a file lists: one `address [weight]` a line; `#` begins a comment.

    The file is looked at every `interval` seconds and read again when its time, size or identity has changed. While it
    is missing, or has a line that is no endpoint, the last good set stays, and that is logged with file and line. Who
    writes it should write another file and rename it to this one: a file that is written in place may be read half.

    Raises:
        ValueError: for an interval that cannot be.
    """
    path = Path(path).absolute()
    return Polled(_File(path).look, interval=interval, name=path.as_uri())


class _File:
    """The latest reading of one file, good or bad."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature: Signature | None = None
        self._trusted_at = 0.0
        self._reading: tuple[Endpoint, ...] | ValueError = ()

    async def look(self) -> tuple[Endpoint, ...]:
        known = self._signature if trio.current_time() >= self._trusted_at else None
        changed = await trio.to_thread.run_sync(_read, self._path, known, abandon_on_cancel=True)
        if changed is not None:
            self._take(*changed)
        if isinstance(self._reading, ValueError):
            raise self._reading.with_traceback(None)  # Else it would keep the frames of all looks that raised it.
        return self._reading

    def _take(self, signature: Signature, content: bytes) -> None:
        if signature != self._signature:
            self._signature, self._trusted_at = signature, trio.current_time() + GRANULARITY
        try:
            self._reading = parse(content)
        except ValueError as exc:
            self._reading = exc


def _read(path: Path, known: Signature | None) -> tuple[Signature, bytes] | None:
    """A file's signature and content; None if it still has the `known` one. In a thread. Raises OSError."""
    if _signature(os.stat(path)) == known:
        return None
    with open(path, "rb", opener=_open) as file:
        status = os.fstat(file.fileno())  # Of what is read: the path may mean another file by now.
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no regular file")
        if status.st_size > LARGEST:
            raise OSError(f"it has {status.st_size} bytes, and a list of addresses no more than {LARGEST}")
        return _signature(status), file.read(LARGEST)


def _open(path: str, flags: int) -> int:
    """Without waiting for the other end, if it is a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _signature(status: os.stat_result) -> Signature:
    return status.st_mtime_ns, status.st_dev, status.st_ino, status.st_size


def parse(content: bytes) -> tuple[Endpoint, ...]:
    """Read the lines of a file. Raises ValueError, with the line's number."""
    found: list[Endpoint] = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            fields = line.decode("utf-8-sig").partition("#")[0].split()
            if fields:
                found.append(_endpoint(*fields))
        except ValueError as exc:
            raise ValueError(f"line {number}: {exc}") from None
    return endpoints(found)


def _endpoint(address: str, weight: str = "1", *rest: str) -> Endpoint:
    if rest:
        raise ValueError(f"{rest[0]!r} is one word too many: write an address, or an address and its weight")
    try:
        number = float(weight)
    except ValueError:
        raise ValueError(f"{weight!r} is no weight: write a number after the address, or nothing") from None
    return Endpoint(address, number)
