"""One task at a time, and the second is told so: the rule of `trio.abc.Stream` for each direction."""

from __future__ import annotations

import trio

__all__ = ["Exclusive"]


class Exclusive:
    """A block that one task may be in. A second one gets BusyResourceError, which says what it did."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._taken = False

    def __enter__(self) -> None:
        if self._taken:
            raise trio.BusyResourceError(f"another task is already {self._doing} this stream")
        self._taken = True

    def __exit__(self, *_exc_info: object) -> None:
        self._taken = False
