"""What any layer may use."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._errors import CodecError

__all__ = ["fixup_module_metadata", "locate"]

_PLACE_IN_BATCH = re.compile(r"^[$]\[[0-9]+\]")


def fixup_module_metadata(namespace: dict[str, Any], module_name: str) -> None:
    """Let the public classes and functions of a namespace say that they live there: in tracebacks, reprs and the docs.

    Args:
        namespace: a package's `globals()`; its `__all__` says which names are public.
        module_name: the public module, like `"trio_rpc"`. What comes from another library is left alone.
    """
    package = module_name.partition(".")[0]
    for name in namespace["__all__"]:
        thing = namespace[name]
        if (inspect.isclass(thing) or inspect.isroutine(thing)) and thing.__module__.partition(".")[0] == package:
            thing.__module__ = module_name


def locate(error: CodecError, where: str, *, item: bool = False) -> None:
    """Put in front of an error's message where it happened.

    `item`: the error is about one item of a batch; its place in the batch is an accident and is left out of the path.
    """
    error.args = (_located(str(error.args[0]), where, item), *error.args[1:])
    if error.outline:
        error.outline = _located(error.outline, where, item)


def _located(message: str, where: str, item: bool) -> str:
    return f"{where}: {_PLACE_IN_BATCH.sub('$', message) if item else message}"
