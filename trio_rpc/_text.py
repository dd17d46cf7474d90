"""Texts that others have chosen, as people get to see them.

A peer's text in a log is `shown`; in an exception, which may have several lines, it is `readable`. What stands in both
for as long as a connection lasts is refused at once unless it `is_readable`. An exception of the program's is `described`.
"""

from __future__ import annotations

import re

__all__ = ["described", "is_readable", "readable", "shown"]

_UNREADABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters, further ends of lines, and what turns the direction of writing: they make a text look like another."""
_UNREADABLE_BUT_LINES = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|\r(?!\n)")


def shown(text: object, limit: int = 80) -> str:
    """A peer's text as a log shows it: on one line, escaped as in `repr`, and of `limit` characters at most."""
    try:
        whole = str(text)
    except Exception:  # An exception's own __str__ may raise.
        whole = f"<{type(text).__name__}>"
    line = whole[: limit + 1]
    if not line.isprintable():
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def described(exc: BaseException) -> str:
    """An exception's repr; the name of its class, where it has none to give."""
    try:
        return repr(exc)
    except Exception:  # It is the program's, and may do anything.
        return f"{type(exc).__name__}()"


def is_readable(text: str) -> bool:
    """True if a text is one line without control characters: it looks like what it is, on a terminal and in a log."""
    return _UNREADABLE.search(text) is None


def readable(text: str, limit: int) -> str:
    """A peer's text for a person: at most `limit` characters, with control characters escaped, apart from tabs and ends of lines."""
    short = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return _UNREADABLE_BUT_LINES.sub(_escape, short)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
