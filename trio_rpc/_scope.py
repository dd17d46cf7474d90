"""The one place that opens a nursery for a context manager and hands the body's own exception back bare.

A nursery wraps whatever leaves its block in an ExceptionGroup, which is right for a nursery that the user sees and
wrong for one that is hidden in `open_pool` or in a call. So the nursery is not told of the body's exception, which goes
on by itself. Background tasks in here record their failures and do not raise.
"""

from __future__ import annotations

import trio

__all__ = ["hidden_nursery"]


class hidden_nursery:  # noqa: N801 - used as a function
    """A nursery that is cancelled when its body ends, whichever way, and whose body's exception comes out bare.

    `cancel=False`: its tasks end by themselves then, which is less work than to cancel them.
    """

    __slots__ = ("_cancel", "_manager", "_nursery")

    def __init__(self, *, cancel: bool = True) -> None:
        self._cancel = cancel
        self._manager = trio.open_nursery()

    async def __aenter__(self) -> trio.Nursery:
        self._nursery = await self._manager.__aenter__()
        return self._nursery

    async def __aexit__(self, kind: object, held: object, traceback: object) -> None:
        if self._cancel:
            self._nursery.cancel_scope.cancel()
        try:
            await self._manager.__aexit__(None, None, None)
        except BaseException as exc:
            # An outer scope may have cancelled the background tasks too. It tells the body the same, now or at its next
            # checkpoint; from here it would only hide the body's exception, or the result that it has already got.
            rest = exc.split(trio.Cancelled)[1] if isinstance(exc, BaseExceptionGroup) else exc
            if rest is not None and not isinstance(rest, trio.Cancelled):
                raise
