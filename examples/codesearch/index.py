"""A trigram index: which files are worth reading for a query. Pure: no Trio, no RPC.

Every three characters in a row of every file are written down, with the files they occur in. A file can only contain
`deadlock` if it has `dea` and `ead` and `adl` and ... . The files that have them all are few, and only their lines are
looked at. A query without three certain characters in a row, like `x*y`, has to read all files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from .contract import BadPattern, Match, Query

Trigram = tuple[str, str, str]

UNSURE = re.compile(r"[|(]|\\[^\WwWsSdDbBAZ]")
"""A regular expression with alternatives, groups or numbered characters: nothing in it is taken for certain."""
UNCERTAIN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.?(?:[*?]|\{[^}]*\}?)|[.^$+}]")
"""The pieces of a simpler one that stand for no certain character: escapes, classes, and what may be left out."""


@frozen
class Document:
    """One file."""

    path: str
    text: str

    def matches(self, pattern: re.Pattern[str]) -> Iterator[Match]:
        """The lines that match. Lines end with a newline alone, as editors count them; `splitlines` counts more."""
        lines = self.text.split("\n")
        if not lines[-1]:
            lines.pop()
        for number, line in enumerate(lines, 1):
            found = pattern.search(line)
            if found is not None:
                yield Match(self.path, number, line, found.start(), found.end())


class Index:
    """The documents of one share, and where their trigrams occur."""

    def __init__(self, documents: Iterable[tuple[str, str]]) -> None:
        self.documents = [Document(path, text) for path, text in documents]
        self._postings: dict[Trigram, list[int]] = {}
        for number, document in enumerate(self.documents):
            for trigram in trigrams(document.text):
                self._postings.setdefault(trigram, []).append(number)

    @property
    def entries(self) -> int:
        """How many distinct trigrams there are."""
        return len(self._postings)

    def candidates(self, query: Query) -> Sequence[Document]:
        """Every document that can have a match, and some that have none, in the order of their paths."""
        wanted = {trigram for text in certain_texts(query) for trigram in trigrams(text)}
        if not wanted:
            return self.documents
        rarest_first = sorted((self._postings.get(trigram, []) for trigram in wanted), key=len)
        numbers = set(rarest_first[0]).intersection(*rarest_first[1:])
        return [self.documents[number] for number in sorted(numbers)]


def trigrams(text: str) -> set[Trigram]:
    """The sets of three characters in a row, whatever their case."""
    folded = text.casefold()  # character by character, unlike `lower`: what is in a part is in the whole
    return set(zip(folded, folded[1:], folded[2:], strict=False))


def compile_query(query: Query) -> re.Pattern[str]:
    """The query as a regular expression for one line. Raises BadPattern with a sentence for the user."""
    if not query.pattern:
        raise BadPattern("the pattern is empty, and would match every line: give at least one character")
    if query.limit is not None and query.limit < 1:
        raise BadPattern(f"a limit of {query.limit} finds nothing: give at least 1, or none")
    source = query.pattern if query.regex else re.escape(query.pattern)
    try:
        # ASCII, because Unicode has letters that match each other and are not equal when folded.
        return re.compile(source, re.IGNORECASE | re.ASCII if query.ignore_case else 0)
    except (re.error, RecursionError, OverflowError) as exc:
        raise BadPattern(f"{query.pattern!r:.80} is no regular expression: {exc}") from None


def certain_texts(query: Query) -> list[str]:
    """Texts that each matching line is sure to contain; cautious, and none if in doubt."""
    if not query.regex:
        return [query.pattern]
    return [] if UNSURE.search(query.pattern) else UNCERTAIN.split(query.pattern)
