"""The directive `settings`: a table of one configuration class's fields, from the table that the code reads.

In a page::

    ```{settings} PoolLimits
    ```
"""

from __future__ import annotations

from typing import Any

import attrs
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import trio_rpc
from trio_rpc._checks import describe
from trio_rpc._config import KIB, MIB


def shown(name: str, default: Any) -> str:
    """A default as a reader writes it: sizes in KiB and MiB, the rest as in Python."""
    if isinstance(default, int) and name.endswith(("size", "bytes", "window")):
        for unit, size in (("MiB", MIB), ("KiB", KIB)):
            if default >= size and default % size == 0:
                return f"{default // size} {unit}"
    if attrs.has(type(default)):
        fields = ", ".join(f"{field.name}={getattr(default, field.name)!r}" for field in attrs.fields(type(default)))
        return f"`{type(default).__name__}({fields})`"
    return f"`{default!r}`"


class Settings(SphinxDirective):
    """The argument names a class of `trio_rpc`; each cell is parsed as Markdown."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        settings = describe(getattr(trio_rpc, self.arguments[0]))
        body = [self.row(f"`{name}`", shown(name, default), meaning) for name, default, meaning in settings]
        columns = [nodes.colspec(colwidth=width) for width in (20, 20, 60)]
        head = nodes.thead("", self.row("Setting", "Default", "Meaning"))
        return [nodes.table("", nodes.tgroup("", *columns, head, nodes.tbody("", *body), cols=3))]

    def row(self, *cells: str) -> nodes.row:
        """One row, each cell a line of Markdown."""
        row = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            self.state.nested_parse(StringList([cell], "settings"), 0, entry)
            row += entry
        return row


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx of the directive."""
    app.add_directive("settings", Settings)
    return {"version": "1", "parallel_read_safe": True}
