"""What an override may do to its contract: add, never change."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from inspect import Parameter
from typing import TypeVar

import attrs

from ._method import Method

__all__ = ["Options", "merged_options", "widened"]


T = TypeVar("T", bool, int)


@attrs.frozen
class Options:
    raises: tuple[type[Exception], ...] = ()
    idempotent: bool | None = None
    thread: bool | None = None
    unlimited: bool | None = None
    limit: int | None = None


def merged_options(chain: Sequence[Method]) -> Options:
    """What the contract says and its overrides add, the most basic first."""
    merged = Options()
    for override in chain:
        merged = Options(
            raises=tuple(dict.fromkeys((*merged.raises, *override.raises))),
            idempotent=_merged("idempotent", merged.idempotent, override, chain[0]),
            thread=_merged("thread", merged.thread, override, chain[0]),
            unlimited=_merged("unlimited", merged.unlimited, override, chain[0]),
            limit=_merged("limit", merged.limit, override, chain[0]),
        )
    if merged.unlimited and merged.limit is not None:
        raise TypeError(f"{chain[-1].__qualname__} is unlimited, and has limit={merged.limit}: leave out one of them")
    return merged


def _merged(option: str, said: T | None, override: Method, first: Method) -> T | None:
    says: T | None = getattr(override, option)
    if said is not None and says is not None and said != says:
        raise _changes(override, first, f"{option} from {said} to {says}")
    return said if says is None else says


def _changes(override: Method, first: Method, what: str) -> TypeError:
    return TypeError(
        f"{override.__qualname__} changes {what}, as {first.__qualname__} says it: "
        "an override may add to its contract, never change it"
    )


def widened(contract: inspect.Signature, own: inspect.Signature, found: Method, promised: Method) -> inspect.Signature:
    """The contract's signature with the override's defaults, and the optional parameters that it adds."""
    if found.shape is not promised.shape or found.stream_parameter != promised.stream_parameter:
        raise _changes(found, promised, f"the call from {_call(promised)} to {_call(found)}")
    counterparts = _counterparts(contract, own)
    kept: list[Parameter] = []
    for parameter, counterpart in counterparts:
        if counterpart is None:
            raise _changes(found, promised, f"parameter {parameter.name!r}, which it drops, renames or moves")
        if counterpart.default is Parameter.empty is not parameter.default:
            raise _changes(found, promised, f"parameter {parameter.name!r} from optional to required")
        kept.append(parameter.replace(default=counterpart.default))
    added = [p for p in own.parameters.values() if all(p is not counterpart for _, counterpart in counterparts)]
    for parameter in added:
        if parameter.default is Parameter.empty:
            raise _changes(found, promised, f"the parameters by {parameter.name!r}, which needs a default")
    return contract.replace(parameters=sorted([*kept, *added], key=lambda parameter: parameter.kind))


def _call(described: Method) -> str:
    stream = described.stream_parameter
    return described.shape.value + (f" of {stream!r}" if stream else "")


def _counterparts(contract: inspect.Signature, own: inspect.Signature) -> list[tuple[Parameter, Parameter | None]]:
    """Each parameter of the contract beside the override's that takes its argument."""
    places = iter([p for p in own.parameters.values() if p.kind is not Parameter.KEYWORD_ONLY])
    pairs: list[tuple[Parameter, Parameter | None]] = []
    for parameter in contract.parameters.values():
        if parameter.kind is Parameter.KEYWORD_ONLY:
            counterpart = own.parameters.get(parameter.name)
        else:
            counterpart = next(places, None)
        fits = counterpart is not None and (
            parameter.kind is Parameter.POSITIONAL_ONLY
            or (counterpart.name == parameter.name and counterpart.kind is not Parameter.POSITIONAL_ONLY)
        )
        pairs.append((parameter, counterpart if fits else None))
    return pairs
