"""What the package's source must not contain, whatever it does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import trio_rpc

PACKAGE = Path(trio_rpc.__file__).parent
CODE_OF_DATA = {"pickle", "marshal", "shelve", "dill", "eval", "exec", "__import__", "import_module", "run_path"}
"""Modules and functions that make code, or objects of any class, of data."""


def names(source: str) -> set[str]:
    """All names that a module reads, imports, or takes from something else; not those in its texts and comments."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found.add(name)
            case ast.Import(names=aliases):
                found.update(part for alias in aliases for part in alias.name.split("."))
            case ast.ImportFrom(module=module, names=aliases):
                found.update((module or "").split("."), (alias.name for alias in aliases))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_makes_code_of_data(path: Path) -> None:
    """X19: no pickle, no eval, no import by a name that comes from elsewhere."""
    assert not names(path.read_text(encoding="utf-8")) & CODE_OF_DATA


@pytest.mark.parametrize(
    "source", ["import pickle", "from importlib import import_module", "x = eval", "import a.marshal.b", "a.exec(b)"]
)
def test_it_would_be_found(source: str) -> None:
    """Each way to name one of these."""
    assert names(source) & CODE_OF_DATA
