"""Bearer tokens: whoever has one is let in."""

from __future__ import annotations

import hmac
import inspect
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias

from trio_rpc import Origin, Unauthenticated

__all__ = ["BearerTokens", "Tokens"]

Tokens: TypeAlias = Mapping[str, Any] | Iterable[str]
"""Tokens and the principal, or the `Identity`, that each stands for; or tokens alone."""

REFUSAL = "a valid token is needed"
"""The same for all failures: who guesses is to learn nothing of how near it was."""


class BearerTokens:
    """Lets in who gives one of these tokens: an `authenticate`, for clients with `credentials="token"`.

    The credentials are the token and nothing else, as `{"token": "..."}`. All failures have the same text. How long a
    refusal takes does not depend on how much of a token was right, nor on how many there are: what is compared is a
    digest of it (HMAC-SHA256), under a key that is drawn anew in each process; and no token is kept.

    A token is worth what it takes to guess it: use `secrets.token_urlsafe()`. It is as secret as the way it travels:
    without TLS, whoever can listen has it. There is nothing in it against being used again by who has seen it.

    Args:
        tokens: a mapping of tokens to principals, where a principal may be a `trio_rpc.Identity` that expires; or just
            tokens, each of which is a principal of its own, under a name that tells nothing; or a function that returns
            either, async or not, which is asked for each connection, so that tokens can be changed anywhere. A function
            costs about 2 us for each token it returns.

    Raises:
        TypeError: for tokens that are no texts. It does not show them.
        ValueError: for an empty token.
    """

    def __init__(self, tokens: Tokens | Callable[[], Tokens | Awaitable[Tokens]]) -> None:
        self._key = secrets.token_bytes(32)
        self._provider = tokens if callable(tokens) else None
        self._principals: dict[bytes, Any] = {} if callable(tokens) else self._digested(tokens)

    def __repr__(self) -> str:
        source = "from a function" if self._provider is not None else str(len(self._principals))
        return f"<BearerTokens: {source}>"

    async def __call__(self, credentials: Mapping[str, Any], origin: Origin) -> Any:
        """The principal of the token. Raises Unauthenticated, and what the function of tokens raises."""
        principals = self._principals
        if self._provider is not None:
            tokens = self._provider()
            principals = self._digested(await tokens if inspect.isawaitable(tokens) else tokens)
        token = credentials.get("token")
        given = self._digest(token if isinstance(token, str) else "")
        # A dict looks at whole digests, which nobody can choose without the key; so its time tells nothing of tokens.
        found = given in principals
        if not (found and len(credentials) == 1):
            raise Unauthenticated(REFUSAL)
        return principals[given]

    def replace(self, tokens: Tokens) -> list[Any]:
        """Take these tokens from now on, and no others: for a rotation without a restart.

        Returns the principals that have no token any more. Their connections stay: `server.revoke(principal)` ends
        them. Raises TypeError and ValueError as at first, and changes nothing then.
        """
        if self._provider is not None:
            raise TypeError("these tokens come from a function: let that return others")
        before = self._principals.values()
        self._principals = self._digested(tokens)
        kept = list(self._principals.values())
        return [principal for principal in before if principal not in kept]

    def _digested(self, tokens: Tokens) -> dict[bytes, Any]:
        if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
            kind = type(tokens).__name__  # Not the value.
            raise TypeError(
                f"tokens must be a mapping of tokens to principals, or a list of tokens, not of type {kind}"
            )
        if isinstance(tokens, Mapping):
            return {self._checked(token): principal for token, principal in tokens.items()}
        return {(digest := self._checked(token)): f"token {digest.hex()[:8]}" for token in tokens}

    def _checked(self, token: Any) -> bytes:
        if not isinstance(token, str):
            raise TypeError(f"a token must be a text, not of type {type(token).__name__}")
        if not token:
            raise ValueError("a token must not be empty")
        return self._digest(token)

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self._key, token.encode("utf-8", "surrogatepass"), "sha256")
