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
from typing import Any

import attrs
import pytest

from trio_rpc import Heartbeat, PoolLimits, ServerLimits
from trio_rpc._checks import describe
from trio_rpc._config import Limits

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


NO_BOUNDS = {
    "min_connections",
    "autostart",
    "spread",
    "priorities",
    "idle_timeout",
    "max_idle",
    "validate_after",
    "slow_start",
    "connect_backoff",
}
"""Settings of a pool that bound nothing a peer could do."""


def limits_as_documented() -> list[tuple[str, str, str]]:
    """Whose, name and default of each row of the table of limits."""
    text = (ROOT / "docs/topics/security.md").read_text().partition("\n## The limits\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+) \| `([\w.]+)` \| ([^|]+) \| (\w+) \| [^|]+ \|$", text, re.MULTILINE)
    return [(whose, name, f"{kind} {default}") for kind, name, default, whose in rows]


def default_as_written(name: str, default: Any) -> set[str]:
    """The ways of writing a default, behind the kind of bound that it is."""
    if name.endswith("_rate"):
        return {f"budget {default:g}/s"}
    if default is None:
        return {"count off", "time off", "size off"}
    if name.endswith(("_size", "_bytes", "stream_window")):
        return {f"size {default // 1024} KiB" if default < 1024**2 else f"size {default // 1024**2} MiB"}
    if isinstance(default, float):
        return {f"time {default:g} s"}
    return {f"budget {default:,}"} if name.endswith("_budget") else {f"count {default:,}"}


def test_the_limits_are_told_as_they_are() -> None:
    """Rule 10: the security page has each setting that bounds a peer, once, with its default, and no other."""
    common = {field.name for field in attrs.fields(Limits)}
    pool = [row for row in describe(PoolLimits) if row[0] not in common]
    server = [row for row in describe(ServerLimits) if row[0] not in common]
    beats = [(f"Heartbeat.{name}", default, text) for name, default, text in describe(Heartbeat)]
    assert {name for name, _, _ in pool} >= NO_BOUNDS
    settings = [("both", *row) for row in [*describe(Limits), *beats]] + [("server", *row) for row in server]
    settings += [("pool", *row) for row in pool if row[0] not in NO_BOUNDS]
    told = limits_as_documented()
    assert sorted(row[:2] for row in told) == sorted(row[:2] for row in settings)
    for whose, name, written in told:
        (default,) = (row[2] for row in settings if row[:2] == (whose, name))
        assert written in default_as_written(name, default), name


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
