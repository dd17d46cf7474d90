"""Who a stranger is: what `authenticate` says of its credentials, and what becomes of those that are refused.

Nothing of the credentials is written down: not by us, and not by way of what the user's function raises. The reason of
a refusal is told to the peer and to the log; a failure of the function's own to the log alone.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeAlias

import trio

from ._crew import holds
from ._errors import ConnectionFailed, Unauthenticated
from ._guesses import Guesses
from ._identity import Identity, identity_of
from ._logs import limited
from ._origin import Origin, host_of
from ._text import shown

__all__ = ["Authenticate", "Authentication"]

log = limited(logging.getLogger("trio_rpc.server"))

Authenticate: TypeAlias = Callable[[Mapping[str, Any], Origin], Any]
"""`authenticate(credentials, origin)` returns the principal, an Identity, or raises Unauthenticated; it may be async."""

LONGEST = 5.0
"""The longest that a refusal is held back, in seconds, where `handshake_timeout` does not bound it."""
HIDDEN = "(left out: it repeats the credentials)"
LONGEST_REASON = 160


class Authentication:
    """Asks `authenticate`. `failure_rate`: refusals a second that each host is told without delay."""

    def __init__(self, authenticate: Authenticate, failure_rate: float | None) -> None:
        self._authenticate = authenticate
        self._guesses = Guesses(failure_rate)

    async def identify(self, credentials: Mapping[str, Any], origin: Origin, until: float) -> Identity:
        """Who it is. Raises Unauthenticated, or ConnectionFailed for who is to be told nothing any more.

        The caller bounds the time; `until` says when it will be over.
        """
        try:
            result = self._authenticate(credentials, origin)
            return identity_of(await result if isinstance(result, Awaitable) else result)
        except Unauthenticated as exc:
            reason = HIDDEN if _repeats(exc.message, credentials) else shown(exc.message, LONGEST_REASON)
            log.info("credentials of %s are refused: %s", origin, reason)
            refusal = exc
        except BaseException as exc:  # A SystemExit is no better a reason to end the server than any other.
            if holds(exc, KeyboardInterrupt) or holds(exc, trio.Cancelled):
                raise
            _log_failure(credentials, origin, exc)
            refusal = Unauthenticated("the credentials could not be checked")
        await self._hold_back(origin, until)
        raise refusal

    async def _hold_back(self, origin: Origin, until: float) -> None:
        """Who has failed too often is told so later, or not at all."""
        now = trio.current_time()
        delay = self._guesses.delay(host_of(origin), now, min(LONGEST, until - now))
        if delay is None:
            raise ConnectionFailed("too many refused credentials from this host (auth_failure_rate)")
        if delay:
            await trio.sleep(delay)


def _log_failure(credentials: Mapping[str, Any], origin: Origin, exc: BaseException) -> None:
    """A failure of the user's own. Its text may repeat what was looked up in vain, as a KeyError's does."""
    text = "".join(traceback.format_exception(exc))
    if _repeats(text, credentials):
        text = "".join([*traceback.format_tb(exc.__traceback__), f"{type(exc).__name__}: {HIDDEN}"])
    log.warning("authenticate failed for %s\n%s", origin, text)


def _repeats(text: str, credentials: object) -> bool:
    """Whether a text has any text of the credentials in it."""
    return any(secret in text or repr(secret)[1:-1] in text for secret in _texts_in(credentials))


def _texts_in(credentials: object) -> Iterator[str]:
    """All of them, but for keys. Not by recursion: a stranger chooses how deep it would go."""
    left = [credentials]
    while left:
        value = left.pop()
        if isinstance(value, str) and value:
            yield value
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list):
            left += value
