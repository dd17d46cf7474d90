"""The directive `fields`: a table of what a snapshot holds, or of an enumeration's members, from the source.

In a page::

    ```{fields} trio_rpc._statistics PoolStatistics
    ```

Autodoc does not find the sentences below the fields: it looks for them in the module that a class says it lives in,
and a public class names the one that users import it from.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def fields(module: str, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield each field of a class, with its type or value, and the text below it."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for statement, following in pairwise([*definition.body, ast.Pass()]):
        match following:
            case ast.Expr(value=ast.Constant(value=str(text))):
                meaning = inspect.cleandoc(text)
            case _:
                meaning = ""
        match statement:
            case ast.AnnAssign(target=ast.Name(id=field), annotation=shown):
                yield field, ast.unparse(shown), meaning
            case ast.Assign(targets=[ast.Name(id=field)], value=shown):
                yield field, ast.unparse(shown), meaning


class Fields(SphinxDirective):
    """The arguments name a module and a class in it; each cell is parsed as Markdown."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        body = [self.row(f"`{name}`", f"`{shown}`", meaning) for name, shown, meaning in fields(*self.arguments)]
        columns = [nodes.colspec(colwidth=width) for width in (20, 15, 65)]
        head = nodes.thead("", self.row("Name", "", "Meaning"))
        return [nodes.table("", nodes.tgroup("", *columns, head, nodes.tbody("", *body), cols=3))]

    def row(self, *cells: str) -> nodes.row:
        """One row, each cell a text of Markdown."""
        row = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            self.state.nested_parse(StringList(cell.splitlines(), "fields"), 0, entry)
            row += entry
        return row


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx of the directive."""
    app.add_directive("fields", Fields)
    return {"version": "1", "parallel_read_safe": True}
