"""Whether a failed call is tried again, and when.

What surely did not run is tried again whatever the policy says, as long as the caller's own deadline allows; a caller
without one is patient for as long as it would have waited for a place. What may have run is tried again only if the method is idempotent, as the policy says. All attempts
share the caller's one deadline, which is its own cancel scope's business.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from ._backoff import delay_before
from ._errors import Code, ConnectionLost, Overloaded, RemoteCancelled, RpcError
from ._methods import RemoteMethod
from ._options import CallOptions
from ._outcomes import surely_not_run

if TYPE_CHECKING:
    from ._caller import Caller

__all__ = ["Trial"]


class Trial:
    """The attempts of one call, and what is known of them together."""

    __slots__ = ("_caller", "_may_have_run", "_method", "_options", "_refusals", "_runs", "_until")

    def __init__(self, caller: Caller, method: RemoteMethod, options: CallOptions) -> None:
        self._caller, self._method, self._options = caller, method, options
        self._runs = self._refusals = 0
        self._may_have_run = False
        self._until: float | None = None

    async def again(self, error: BaseException, deadline: float) -> None:
        """Wait until the next attempt is due, or raise `error`. `deadline` is the caller's; `inf` for none."""
        delay = self.delay(error, deadline)
        if delay is None:
            raise self.final(error)
        self._caller.counters.retries += 1
        if delay:
            await trio.sleep(delay)

    def final(self, error: BaseException) -> BaseException:
        """Count a call that ends with `error`, and tell the error whether any of the attempts may have run."""
        if isinstance(error, RpcError):
            error.may_have_run = error.may_have_run or self._may_have_run
        return self._caller.counted(error)

    def delay(self, error: BaseException, deadline: float) -> float | None:
        """Seconds to the next attempt, or None: `error` is final."""
        if isinstance(error, RpcError):
            self._may_have_run = error.may_have_run or self._may_have_run
        now = trio.current_time()
        if self._until is None:
            patience = self._options.patience
            self._until = math.inf if patience is None or deadline != math.inf else now + patience
        delay = self._pause(error)
        return delay if delay is not None and now + delay <= self._until else None

    def _pause(self, error: BaseException) -> float | None:
        policy = self._options.retry
        if surely_not_run(error):
            self._refusals += 1
            at_once = self._refusals == 1 and not isinstance(error, Overloaded)
            return 0.0 if at_once else delay_before(self._refusals + 1, policy.backoff, self._caller.rng)
        self._runs += 1
        stopped = isinstance(error, RemoteCancelled) and error.code is Code.CANCELLED
        may_help = stopped or isinstance(error, ConnectionLost)
        if may_help and self._method.idempotent and self._runs < policy.attempts:
            return delay_before(self._runs + 1, policy.backoff, self._caller.rng)
        return None
