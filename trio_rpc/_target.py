"""What can be called: the few verbs that a pool and a peer share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, Unpack

import trio

from ._caller import Caller
from ._contract import Shape
from ._options import StubOptions
from ._stub import make_stub

__all__ = ["Target"]

S = TypeVar("S")


class Target:
    """Something to call. A `Pool` and a `Peer` are two kinds of it."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def stub(self, contract: Callable[..., S], /, **options: Unpack[StubOptions]) -> S:
        """An object with the contract's methods, each of which calls the peer.

        It is cheap, and has no life of its own: make one for a single call if you like. Options, each for this
        stub's calls alone, and otherwise the pool's:

        - `metadata`: a mapping of texts to texts or bytes, added to the pool's.
        - `retry`: a RetryPolicy; its budget and throttle count for nothing, as these are the pool's.
        - `hedge`: a HedgePolicy for idempotent unary methods, or None for no hedging.
        - `wait_for_ready`: None to wait for a place for `acquire_timeout`; True to wait as long as the caller's own
          deadline allows; False to wait likewise, but to fail at once while no connection can be had.
        - `acquire_timeout`: the longest wait for a place in seconds; None for no bound but the caller's deadline.
        - `priority`: the class in the line, 0 first; without it the last one.
        - `routing_key`: a text; calls of one key go to one endpoint, while it is there and has room.
        - `idempotency_key`: a text; at one server a second call of one key, method and arguments joins the first, or
          gets its result. So what may have run is made again there, though not idempotent. Unary methods only.
        - `cancel_wait`: how long a cancelled call waits for its handler's end, in seconds.
        - `reply_metadata`: a dict, which is filled with what handlers send back.

        Raises TypeError for an unknown option or one of a wrong type, ValueError for a number out of range, and
        TypeError, with a sentence that says what to write instead, for a contract that cannot be served.
        """
        return make_stub(self._caller, contract, self._caller.options.with_(options))

    async def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Make a unary call without a contract: `await pool.call("Inventory.stock", "A-1")`.

        Arguments and result are plain values: what the codec itself carries.
        """
        caller = self._caller
        return await caller.unary(caller.by_name(name, Shape.UNARY), args, kwargs, caller.options)

    def stream(
        self, name: str, /, *args: Any, **kwargs: Any
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Any]]:
        """Open a server stream without a contract: `async with pool.stream("Inventory.watch", "A-1") as levels:`."""
        caller = self._caller
        return caller.server_stream(caller.by_name(name, Shape.SERVER_STREAM), args, kwargs, caller.options)
