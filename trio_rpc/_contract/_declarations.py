"""Is a method's body an implementation, or only the declaration of one?

Decided once, from the code, which needs no source and runs nothing.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["is_declaration"]

_PROLOGUE = {"COPY_FREE_VARS", "MAKE_CELL", "RETURN_GENERATOR", "POP_TOP", "RESUME", "NOP", "PUSH_NULL", "GEN_START"}
_NOT_IN_A_RAISE = ("POP_TOP", "STORE", "JUMP", "RETURN", "YIELD", "SEND", "FOR_ITER", "DELETE", "IMPORT")


def is_declaration(function: Callable[..., Any], owner: type | None) -> bool:
    """Decided from the code, which needs no source and runs nothing."""
    code = list(dis.get_instructions(function))
    while code and code[0].opname in _PROLOGUE:
        del code[0]
    return _only_raises(code) or (_is_empty(code) and _may_not_be_empty(function, owner))


def _only_raises(code: list[dis.Instruction]) -> bool:
    """One straight line from the name NotImplementedError to its raise, and no handler around it."""
    names = [instruction.opname for instruction in code]
    if "RAISE_VARARGS" not in names or "PUSH_EXC_INFO" in names or code[0].argval != "NotImplementedError":
        return False
    line = names[: names.index("RAISE_VARARGS")]
    return not any(name.startswith(_NOT_IN_A_RAISE) or "_JUMP_" in name for name in line)


def _is_empty(code: list[dis.Instruction]) -> bool:
    """`...`, `pass`, a docstring or `return`: they leave the same code."""
    names = [instruction.opname for instruction in code if not instruction.opname.startswith(("CALL_", "RERAISE"))]
    return names in (["LOAD_CONST", "RETURN_VALUE"], ["RETURN_CONST"]) and code[0].argval is None


def _may_not_be_empty(function: Callable[..., Any], owner: type | None) -> bool:
    """Whether an empty body can only mean a declaration: abstract, in a Protocol, or another result is promised."""
    if inspect.isasyncgenfunction(function):
        return False  # with a `yield` that is never reached: an empty stream
    if getattr(function, "__isabstractmethod__", False) or (owner is not None and _is_protocol(owner)):
        return True
    return inspect.get_annotations(inspect.unwrap(function)).get("return", None) not in (None, "None")


def _is_protocol(cls: type) -> bool:
    """Whether a class is itself a Protocol, not an implementation of one."""
    return any(base.__name__ == "Protocol" and base.__module__.startswith("typing") for base in cls.__bases__)
