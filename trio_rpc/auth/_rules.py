"""Who may call what."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Set
from fnmatch import translate
from typing import Any, TypeAlias

from trio_rpc import Peer

__all__ = ["AccessRules", "Rule", "anyone"]

Rule: TypeAlias = tuple[object, str | Iterable[str]]
"""Who, and which methods."""


def anyone(principal: object) -> bool:
    """In a rule: every principal, also that of a server that asks for none."""
    return True


class AccessRules:
    """Who may call what: an `authorize`. First what is denied, then what is allowed; the rest is refused.

    A rule is `(who, methods)`::

        AccessRules(
            deny=[("intern", "*.delete")],
            allow=[({"web", "batch"}, ["Inventory.stock", "Inventory.reserve"]), (is_operator, "*"), (anyone, "Health.*")],
        )

    *Who* is a principal (an equal one), a set of them, or a function that is told a principal and says whether it is
    meant: a group. *Methods* is a name as on the wire, `Inventory.stock`; or a pattern with `*`, `?` and `[...]`, where
    upper and lower case differ and `*` is any text, dots included; or a list of these.

    Rules are asked at each call. Names without a wildcard are found in one step; patterns are tried one by one. What a
    function raises refuses the call.

    Raises:
        TypeError: at once, for what is no rule.
    """

    def __init__(self, *, deny: Iterable[Rule] = (), allow: Iterable[Rule] = ()) -> None:
        self._deny = _Rules("deny", deny)
        self._allow = _Rules("allow", allow)

    def __repr__(self) -> str:
        return f"AccessRules(deny={self._deny}, allow={self._allow})"

    def __call__(self, peer: Peer, method: str) -> bool:
        """Whether this peer may call this method."""
        return self.allows(peer.principal, method)

    def allows(self, principal: object, method: str) -> bool:
        """Whether this principal may call this method: for tests of your rules."""
        return not self._deny.mean(principal, method) and self._allow.mean(principal, method)


class _Rules:
    """Those of one kind."""

    def __init__(self, kind: str, rules: Iterable[Rule]) -> None:
        self._rules = [_checked(kind, rule) for rule in rules]
        self._exact: dict[str, list[Callable[[Any], bool]]] = {}
        self._patterns: list[tuple[re.Pattern[str], Callable[[Any], bool]]] = []
        for who, methods in self._rules:
            is_meant = _predicate(who)
            for method in methods:
                if any(wildcard in method for wildcard in "*?["):
                    self._patterns.append((re.compile(translate(method)), is_meant))
                else:
                    self._exact.setdefault(method, []).append(is_meant)

    def __repr__(self) -> str:
        shown = (f"({_shown(who)}, {', '.join(methods)})" for who, methods in self._rules)
        return f"[{', '.join(shown)}]"

    def mean(self, principal: object, method: str) -> bool:
        """Whether one of them is about this principal and method."""
        return any(is_meant(principal) for is_meant in self._exact.get(method, ())) or any(
            pattern.match(method) is not None and is_meant(principal) for pattern, is_meant in self._patterns
        )


def _checked(kind: str, rule: Any) -> tuple[Any, tuple[str, ...]]:
    advice = f'a rule under {kind} is (who, methods), like ("batch", "Inventory.*")'
    if not isinstance(rule, tuple) or len(rule) != 2:
        raise TypeError(f"{advice}, not {rule!r:.80}")
    who, methods = rule
    names = (methods,) if isinstance(methods, str) else methods
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise TypeError(f"{advice}: methods are named by texts, not by {methods!r:.80}")
    names = tuple(names)
    if not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"{advice}: methods are named by texts, not by {methods!r:.80}")
    return who, names


def _predicate(who: Any) -> Callable[[Any], bool]:
    if callable(who):
        return who  # type: ignore[no-any-return]
    if isinstance(who, Set):
        return lambda principal: any(principal == one for one in who)
    return lambda principal: bool(principal == who)


def _shown(who: Any) -> str:
    return getattr(who, "__name__", None) or repr(who)
