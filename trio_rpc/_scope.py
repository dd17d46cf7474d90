"""The one place that opens a nursery for a context manager and hands the body's own exception back bare.

A nursery wraps whatever leaves its block in an ExceptionGroup, which is right for a nursery that the user sees and
wrong for one that is hidden in `open_pool` or in a call. So the body's exception is held while the nursery ends, and
raised again outside, the same object. Background tasks in here record their failures and do not raise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["hidden_nursery"]


@asynccontextmanager
async def hidden_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled when its body ends, whichever way, and whose body's exception comes out bare."""
    held: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:
                held = exc
            nursery.cancel_scope.cancel()
    except BaseException as exc:
        # An outer scope may have cancelled the background tasks too. It tells the body the same, now or at its next
        # checkpoint; from here it would only hide the body's exception, or the result that it has already got.
        rest = exc.split(trio.Cancelled)[1] if isinstance(exc, BaseExceptionGroup) else exc
        if rest is not None and not isinstance(rest, trio.Cancelled):
            raise
    if held is not None:
        try:
            raise held
        finally:
            del held  # No cycle between the exception's traceback and this frame.
