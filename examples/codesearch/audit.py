"""What came back, and whether it is right: each answer is compared with a plain scan of the files, without any index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import trio
from attrs import Factory, define

from .contract import Enough, Match, Missing, Query, Search
from .corpus import read_documents, share_of, source_paths
from .index import Document, compile_query


@define
class Result:
    """One search, as its caller saw it."""

    query: Query
    matches: list[Match] = Factory(list)
    missing: dict[str, Missing] = Factory(dict)
    """The shares that could not answer, by name."""
    enough: Enough | None = None
    """What the gateway said when it had as many matches as were wanted."""
    first_after: float | None = None
    """Seconds until the first match."""
    missing_after: float = 0.0
    """Seconds until the last share was given up."""
    seconds: float = 0.0
    """Seconds until the search had ended, here and there."""
    out_of_time: bool = False
    """Whether the caller's deadline ended it."""

    async def collect(
        self, search: Search, on_match: Callable[[Match], object], *, within: float = float("inf")
    ) -> None:
        """Search, and take what comes, for `within` seconds at most."""
        began = trio.current_time()
        with trio.move_on_after(within) as deadline:
            async with search.search(self.query) as answers:
                async for answer in answers:
                    self._take(answer, trio.current_time() - began)
                    if isinstance(answer, Match):
                        on_match(answer)
        self.out_of_time = deadline.cancelled_caught
        self.seconds = trio.current_time() - began

    def _take(self, answer: Match | Missing | Enough, after: float) -> None:
        match answer:
            case Match():
                self.matches.append(answer)
                self.first_after = after if self.first_after is None else self.first_after
            case Missing(share):
                self.missing[share] = answer
                self.missing_after = after
            case Enough():
                self.enough = answer

    @property
    def ended_early(self) -> bool:
        """Whether somebody wanted no more of it."""
        return self.enough is not None or self.out_of_time


class PlainScan:
    """The same files, read once more and searched line by line."""

    def __init__(self, root: Path, shares: Sequence[str]) -> None:
        paths = source_paths(root)
        self._shares = {
            name: [Document(*document) for document in read_documents(root, share_of(paths, number, len(shares)))]
            for number, name in enumerate(shares, 1)
        }

    def fault_of(self, result: Result) -> str | None:
        """What is wrong with an answer, in a few words; None if nothing is.

        A whole answer has each match of the shares that answered, once. One that ended early has none that is wrong.
        """
        found = set(result.matches)
        if len(found) != len(result.matches):
            return "a match came twice"
        answered, partly = self._scan(result)
        if answered - found and not result.ended_early:
            return f"{len(answered - found)} matches are not there"
        return f"{len(found - answered - partly)} matches are wrong" if found - answered - partly else None

    def _scan(self, result: Result) -> tuple[set[Match], set[Match]]:
        """The matches in the shares that answered, and in those that are missing."""
        pattern = compile_query(result.query)
        # Of a search that ended early, only what it did find can be checked, in the files where it found it.
        paths = {match.path for match in result.matches} if result.ended_early else None
        scanned: tuple[set[Match], set[Match]] = (set(), set())
        for name, documents in self._shares.items():
            for document in documents:
                if paths is None or document.path in paths:
                    scanned[name in result.missing].update(document.matches(pattern))
        return scanned
