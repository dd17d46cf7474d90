"""What a peer can have written to the log: few lines, and nothing in them but text.

Whoever can reach a port can make a server log something, and so can every caller of a handler that fails. Their lines
share one allowance: not a file of them is to be filled, and a line that says something is not to be lost among them.

1. At most `LINES` in any second, for all loggers of the package and all connections of one Trio run together. One
   of them is for saying how many were left out, ahead of the next line that is let through.
2. Of each level a few lines find room whatever is written of the others: `RESERVED`. Strangers, who have said no HELLO
   yet, cause INFO, and a hook of the program's that fails on them WARNING; so they cannot keep out the failure of a
   handler, nor can that, however often it is repeated, keep out everything else.
3. Text of a peer's goes through `shown` (`_text`): one line, no control characters, not long.
4. Writing never raises: a log handler of the program's that does so is not the fault of a connection.

The clock is Trio's, as everywhere: so each run has its own allowance, and needs no lock.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from types import TracebackType
from typing import Final, TypeAlias

import trio

__all__ = ["LINES", "Limited", "limited", "log_failure"]

LINES: Final = 10
"""Lines a second for all that peers can cause (reliability, R21)."""

RESERVED: Final = {logging.INFO: 1, logging.WARNING: 2, logging.ERROR: 3}
"""Lines a second of each level that the others leave room for. So alone they may be 4, 5 and 6."""

UNSHOWN: Final = "whose traceback cannot be shown (%r)"

ExcInfo: TypeAlias = "bool | BaseException | tuple[type[BaseException], BaseException, TracebackType | None] | None"


class _Ledger:
    """What was written and left out in one Trio run."""

    __slots__ = ("left_out", "left_out_since", "said_at", "severest", "times")

    def __init__(self) -> None:
        self.times: dict[int, deque[float]] = {level: deque() for level in RESERVED}
        """When the lines of the last second were written, by level."""
        self.left_out: int = 0
        """Lines since the last word about such."""
        self.left_out_since: float = 0.0
        self.severest: int = logging.INFO
        self.said_at: float = float("-inf")

    def take(self, level: int, now: float) -> bool:
        """Whether one more line may be written now; noted either way."""
        taken = 0
        for other, times in self.times.items():
            while times and now - times[0] >= 1.0:
                times.popleft()
            taken += len(times) if other == level else max(len(times), RESERVED[other])
        if taken >= LINES - 1:
            if not self.left_out:
                self.left_out_since = now
            self.left_out += 1
            self.severest = max(self.severest, level)
            return False
        self.times[level].append(now)
        return True

    def tell(self, now: float) -> tuple[int, str, int, float] | None:
        """The level and the parts of the line about those that were left out, if one is due."""
        if not self.left_out or now - self.said_at < 1.0:
            return None
        told = (
            self.severest,
            "%d more lines were left out in the last %.1f s",
            self.left_out,
            now - self.left_out_since,
        )
        self.said_at, self.left_out, self.severest = now, 0, logging.INFO
        return told


_ledger: trio.lowlevel.RunVar[_Ledger] = trio.lowlevel.RunVar("trio_rpc log ledger")


class Limited:
    """A logger for what peers can cause. Each method returns True if the line was written."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def info(self, message: str, *args: object, exc_info: ExcInfo = None) -> bool:
        """What happens every day, or is a stranger's doing."""
        return self._write(logging.INFO, message, args, exc_info)

    def warning(self, message: str, *args: object, exc_info: ExcInfo = None) -> bool:
        """What an operator should know of a peer."""
        return self._write(logging.WARNING, message, args, exc_info)

    def error(self, message: str, *args: object, exc_info: ExcInfo = None) -> bool:
        """What the program's own code has done."""
        return self._write(logging.ERROR, message, args, exc_info)

    def _write(self, level: int, message: str, args: tuple[object, ...], exc_info: ExcInfo) -> bool:
        try:
            if not self._logger.isEnabledFor(level) or not self._take(level):
                return False
            self._logger.log(level, message, *args, exc_info=exc_info, stacklevel=3)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # Of a log handler or filter of the program's, or of what it was to show.
            return exc_info is not None and self._write(level, f"{message}, {UNSHOWN}", (*args, type(exc)), None)
        return True

    def _take(self, level: int) -> bool:
        try:
            now = trio.current_time()
        except RuntimeError:  # Outside of any run there are no peers.
            return True
        try:
            ledger = _ledger.get()
        except LookupError:
            ledger = _Ledger()
            _ledger.set(ledger)
        if not ledger.take(level, now):
            return False
        told = ledger.tell(now)
        if told is not None:
            self._logger.log(*told, stacklevel=4)
        return True


def limited(logger: logging.Logger) -> Limited:
    """What writes to `logger` at most as much as the module says."""
    return Limited(logger)


def log_failure(log: Limited, method: str, caller: str, exc: BaseException) -> str:
    """Write down what nobody else is told; returns the id that finds it, or "" if the log has had enough."""
    error_id = secrets.token_hex(8)
    written = log.error("%s failed, error id %s, caller %s", method, error_id, caller, exc_info=exc)
    return error_id if written else ""
