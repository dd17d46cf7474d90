"""The contract: what a search service does, and the values that travel.

A service that searches one share and the gateway that searches all of them have this one contract. So whoever has a
`Search` need not know which of them it is, nor whether it is here or behind a wire.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TypeAlias

from attrs import frozen

import trio_rpc


@frozen
class Query:
    """What to look for, line by line."""

    pattern: str
    """A text, or a regular expression of Python's `re`."""
    regex: bool = False
    """Whether `pattern` is a regular expression."""
    ignore_case: bool = False
    """Whether ASCII letters of either case match each other."""
    limit: int | None = None
    """The search ends with so many matches; None finds them all."""


@frozen
class Match:
    """One line that matches."""

    path: str
    """The file, relative to the root of the sources, with `/`."""
    line: int
    """The line's number, from 1."""
    text: str
    """The line as it is in the file, without its end."""
    start: int
    """Where in `text` the first match begins."""
    end: int
    """Where it ends."""


@frozen
class Missing:
    """A part of the sources that was not searched, or not to its end: the answer is partial."""

    share: str
    """Which part."""
    reason: str
    """Why: one sentence."""


@frozen
class Enough:
    """The limit was reached, and the search was stopped; always the last answer."""

    limit: int


# A union of classes travels with the class's name as a tag, so each answer arrives as what it is.
Answer: TypeAlias = Match | Missing | Enough


@frozen
class ShareStats:
    """What one share holds, and what its service has done since it began."""

    share: str
    pid: int
    files: int
    lines: int
    size: int
    """Characters of source text."""
    trigrams: int
    """Distinct entries in the index."""
    build_seconds: float
    """How long it took to read and index the share."""
    started: int
    """Searches begun."""
    running: int
    """Searches that are being done at this moment."""
    finished: int
    """Searches done to their end."""
    files_read: int
    """Files whose lines were looked at, over all searches."""
    seconds_left: float | None
    """The time that the latest search had when it began; None if its caller had set no deadline."""

    @property
    def stopped(self) -> int:
        """Searches that ended early, because their caller wanted no more."""
        return self.started - self.running - self.finished


class BadPattern(Exception):
    """The pattern cannot be searched for; the text says why. Named in the contract, so it arrives as itself."""


class Search:
    """A code search."""

    @trio_rpc.method(idempotent=True, raises=[BadPattern])
    def search(self, query: Query) -> AsyncGenerator[Answer, None]:
        """Yield matches as they are found, in no order over files. Raises BadPattern."""
        raise NotImplementedError

    @trio_rpc.method(idempotent=True)
    async def stats(self) -> list[ShareStats]:
        """One entry for each share that can be reached."""
        raise NotImplementedError
