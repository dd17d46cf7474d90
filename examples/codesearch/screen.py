"""What is printed: colours on a terminal that has them, plain text everywhere else.

With `rich` (the extra `cli`) a terminal gets colours; a pipe, `NO_COLOR`, `TERM=dumb`, or a Python without rich get the
same lines without them, and without any control character, whatever the searched files contain.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any, TextIO, TypeAlias

from .contract import Match, Query

Part: TypeAlias = str | tuple[str, str]
"""A piece of a line: plain, or with one of rich's styles."""

PIPE_WIDTH = 100
"""Columns where nobody says how many there are."""
NARROW, WIDE = 40, 160
"""Lines are cut to the terminal's width, within reason."""


class Screen:
    """Prints lines made of parts.

    Args:
        stream: where to.
        cut: whether matches are cut to the width.
    """

    def __init__(self, stream: TextIO, *, cut: bool = True) -> None:
        self._stream = stream
        self._cut = cut
        self._console = _console(stream)
        columns = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns
        self.width = max(NARROW, min(columns, WIDE))

    def say(self, *parts: Part) -> None:
        """Print one line, at once: a reader at the other end of a pipe sees it when it happens."""
        self._stream.write(self._rendered(parts) + "\n")
        self._stream.flush()

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.say()
        self.say((text, "bold"))

    def match(self, match: Match, *, indent: str = "  ") -> None:
        """Print a match as `file:line: text`, with the matching part highlighted."""
        place = f"{indent}{match.path}:{match.line}: "
        room = max(20, self.width - len(place)) if self._cut else len(match.text)
        before, found, after = excerpt(match, room)
        self.say((place, "cyan"), before, (found, "bold yellow"), after)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "  ") -> None:
        """Print columns: the first to the left, the others to the right."""
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for number, row in enumerate([header, *rows]):
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            self.say((indent + "  ".join(cells).rstrip(), "" if number else "dim"))

    def _rendered(self, parts: Sequence[Part]) -> str:
        if self._console is None:
            return "".join(part if isinstance(part, str) else part[0] for part in parts)
        from rich.text import Text  # noqa: PLC0415 -- rich is there when there is a console

        with self._console.capture() as capture:  # we write ourselves: rich has its own mind about closed pipes
            self._console.print(Text.assemble(*parts), soft_wrap=True, highlight=False, end="")
        text: str = capture.get()
        return text


def _console(stream: TextIO) -> Any:
    """Rich's console, or None where it is not installed or has nothing to add."""
    if os.environ.get("NO_COLOR"):
        return None  # rich would leave out colours alone, and keep bold and dim
    try:
        from rich.console import Console  # noqa: PLC0415 -- an extra
    except ImportError:
        return None
    console = Console(file=stream)
    return console if console.color_system else None


def prepare_output() -> None:
    """Let no character of a source file be more than this terminal's encoding can bear."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def excerpt(match: Match, room: int) -> tuple[str, str, str]:
    """What comes before the match in its line, the match, and what comes after it: `room` characters at most.

    Indentation goes, control characters become spaces; what is cut off leaves three dots.
    """
    text = "".join(letter if letter.isprintable() else " " for letter in match.text.rstrip())
    indentation = min(len(text) - len(text.lstrip()), match.start)
    fits = match.end - indentation <= room
    first = indentation if fits else max(indentation, match.start - room // 3)  # rather the match than what is before
    last = min(len(text), first + room)
    before, found, after = text[first : match.start], text[match.start : min(match.end, last)], text[match.end : last]
    if first > indentation:
        before = "..." + before[3:]
    if last < len(text) and len(after) >= 3:
        after = after[:-3] + "..."
    return before, found, after


def duration(seconds: float | None) -> str:
    """A time as one reads it: `3.1 ms`, `240 ms`, `1.02 s`; `-` for none."""
    if seconds is None:
        return "-"
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def counted(number: int, one: str, many: str) -> str:
    """A number and what it is of."""
    return f"{number:,} {one if number == 1 else many}"


def shown(query: Query) -> str:
    """A query as one would write it."""
    text = f"/{query.pattern}/" if query.regex else f'"{query.pattern}"'
    return text + (" in any case" if query.ignore_case else "") + (f", at most {query.limit}" if query.limit else "")
