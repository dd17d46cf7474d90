"""The Python blocks of the README and of each page of the docs run as printed.

A page is one program: its blocks run in order, in one namespace, in a process of their own. A block that is only to
be looked at has `<!-- skip: next -->` on a line before it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path for path in [*ROOT.glob("README.md"), *ROOT.glob("docs/**/*.md")] if "```python" in path.read_text()
)
SECONDS = 60

FENCE = re.compile(
    r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$|^<!-- *(?P<skip>skip: next) *-->$", re.DOTALL | re.MULTILINE
)


def blocks(text: str) -> Iterator[str]:
    """Each Python block to run, behind as many empty lines as put it on its own line numbers."""
    skip = False
    for found in FENCE.finditer(text):
        if found["skip"]:
            skip = True
            continue
        if found["language"].strip() == "python" and not skip:
            yield "\n" * text.count("\n", 0, found.start("code")) + found["code"]
        skip = False


def run_page(path: Path) -> None:
    """Run a page as the main program, so that its tracebacks and its classes say where they come from."""
    page = ModuleType("__main__")
    page.__file__ = str(path)
    sys.modules["__main__"] = page
    for block in blocks(path.read_text()):
        exec(compile(block, path, "exec", dont_inherit=True), vars(page))  # noqa: S102 -- our own pages


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_runs_as_printed(page: Path) -> None:
    """The page's program ends by itself, with success."""
    command = [sys.executable, "-W", "error", __file__, str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\nx = 1\n```\n", ["\nx = 1\n"]),
        ("a\n\n```python\nx = 1\n```\nb\n```python\ny\n```\n", ["\n\n\nx = 1\n", "\n" * 7 + "y\n"]),
        ("<!-- skip: next -->\n```python\nx\n```\n\n```python\ny\n```\n", ["\n" * 6 + "y\n"]),
        ("```console\n$ python\n```\n```\nplain\n```\n```{code-block} python\nx\n```\n", []),
    ],
)
def test_blocks(text: str, expected: list[str]) -> None:
    """Only Python blocks are taken, each on its own line numbers, and a skip is for one block."""
    assert list(blocks(text)) == expected


def test_a_failing_block_is_reported_at_its_own_line(tmp_path: Path) -> None:
    """The blocks of a page share one namespace, and a failure names the page and the line."""
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\ntext\n```python\nassert x == 2\n```\n")
    done = subprocess.run([sys.executable, __file__, str(page)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f'File "{page}", line 6' in done.stderr


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
