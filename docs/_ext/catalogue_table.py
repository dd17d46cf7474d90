"""The directive `catalogue`: a table of what can go wrong, and of the tests that show what happens then.

In a page, for all items whose numbers begin with one of these, or for all::

    ```{catalogue} W R
    ```
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tests import catalogue


def shown_by(tests: Iterable[tuple[str, str]]) -> str:
    """Each file once, with the names of its tests: `wire/test_protocol.py`: a, b. A proof has none."""
    by_file: dict[str, list[str]] = {}
    for file, name in tests:
        by_file.setdefault(file, []).append(name.removeprefix("test_"))
    return "; ".join(f"`{file}`: {', '.join(names)}" if any(names) else f"`{file}`" for file, names in by_file.items())


class Catalogue(SphinxDirective):
    """The arguments are beginnings of numbers; each cell is parsed as Markdown."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        kinds = tuple(self.arguments[0].split()) if self.arguments else ("",)
        tests = catalogue.tests_by_item()
        body = [
            self.row(item, title, catalogue.DECISIONS.get(item) or shown_by(tests.get(item, [])))
            for item, title in catalogue.ITEMS.items()
            if item.startswith(kinds)
        ]
        columns = [nodes.colspec(colwidth=width) for width in (8, 32, 60)]
        head = nodes.thead("", self.row("Item", "What goes wrong", "Shown by"))
        return [nodes.table("", nodes.tgroup("", *columns, head, nodes.tbody("", *body), cols=3))]

    def row(self, *cells: str) -> nodes.row:
        """One row, each cell a line of Markdown."""
        row = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            self.state.nested_parse(StringList([cell], "catalogue"), 0, entry)
            row += entry
        return row


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx of the directive."""
    app.add_directive("catalogue", Catalogue)
    return {"version": "1", "parallel_read_safe": True}
