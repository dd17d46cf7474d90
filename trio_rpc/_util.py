"""What any layer may use."""

from __future__ import annotations

import inspect
import re
from typing import Any

__all__ = ["fixup_module_metadata", "locate"]


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


def locate(error: Exception, where: str, *, item: bool = False) -> None:
    """Put in front of an error's message where it happened.

    `item`: the error is about one item of a batch; its place in the batch is an accident and is left out of the path.
    """
    message = str(error.args[0])
    if item:
        message = re.sub(r"^[$]\[[0-9]+\]", "$", message)
    error.args = (f"{where}: {message}", *error.args[1:])
