"""Who catches what leaves a connection's task: nothing of it is raised into its owner's nursery, but what is its own.

So one connection cannot end the pool or the server that has it, whatever fails in there.
"""

from __future__ import annotations

import logging
import math

import trio

from ._logs import limited

__all__ = ["Contained", "parted"]

log = limited(logging.getLogger("trio_rpc.connection"))


class Contained:
    """A block that nothing in a connection raises out of, apart from what is its owner's: it is logged instead.

    The owner's are KeyboardInterrupt, which is the program's, and its own cancellation.
    """

    __slots__ = ("_address",)

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        if exc is None:
            return False
        ours, rest = parted(exc, KeyboardInterrupt)
        if rest is not None:
            log.error("connection to %s failed inside", self._address, exc_info=rest)
        if ours is None or ours is exc:
            return ours is None
        raise ours from None


def parted(exc: BaseException, *kinds: type[BaseException]) -> tuple[BaseException | None, BaseException | None]:
    """What a scope around this place has caused by its cancellation, and what else failed; `kinds` go with the former.

    A Cancelled that none of them has caused is a failure: an old one that a cache has kept and raised again, for one.
    Let go on, it would end whatever is around it.
    """
    if trio.current_effective_deadline() == -math.inf:
        kinds = (*kinds, trio.Cancelled)
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(kinds) if kinds else (None, exc)
    return (exc, None) if isinstance(exc, kinds) else (None, exc)
