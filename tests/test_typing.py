"""What users write has the types that it should have, and what fails when run is refused before, by both checkers."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TYPING = ROOT / "tests" / "typing"
MARK = re.compile(r"# wrong: (.+)$")

Errors = dict[tuple[str, int], str]
"""All messages about one line, by the file's name and the line's number."""


def run(tool: str, *arguments: str) -> str:
    """Run a checker on behalf of the project; its output."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed, so the types are not checked with it")
    environment = {**os.environ, "MYPYPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    command = [sys.executable, "-m", tool, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(path: Path) -> Errors:
    """Check with `mypy --strict`."""
    errors: Errors = defaultdict(str)
    for line in run(
        "mypy", "--strict", "--follow-imports=silent", "--output=json", "--no-error-summary", str(path)
    ).splitlines():
        found = json.loads(line)
        errors[Path(found["file"]).name, found["line"]] += found["message"]
    return errors


def pyright(path: Path) -> Errors:
    """Check with pyright, as the project sets it."""
    errors: Errors = defaultdict(str)
    output = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, str(path)))
    assert output["summary"]["filesAnalyzed"] > 0
    for found in output["generalDiagnostics"]:
        errors[Path(found["file"]).name, found["range"]["start"]["line"] + 1] += found["message"]
    return errors


pytestmark = pytest.mark.slow
both = pytest.mark.parametrize("check", [mypy, pyright])


@both
def test_right_uses_have_their_types(check: Callable[[Path], Errors]) -> None:
    """Contracts, implementations, objects and stubs, under the strictest settings."""
    assert check(TYPING / "right_uses.py") == {}


@both
def test_wrong_uses_are_refused(check: Callable[[Path], Errors], tmp_path: Path) -> None:
    """Every marked line, with the marked text, and no other."""
    silence, *lines = (TYPING / "wrong_uses.py").read_text().splitlines()
    assert silence.startswith("# type: ignore")
    copy = tmp_path / "wrong_uses.py"
    copy.write_text("\n".join(["", *lines]))
    marked = {
        ("wrong_uses.py", number): found[1] for number, line in enumerate(lines, 2) if (found := MARK.search(line))
    }
    errors = check(copy)
    assert errors.keys() - marked.keys() == set(), "refused, but not marked"
    assert marked.keys() - errors.keys() == set(), "marked, but not refused"
    assert [place for place, text in marked.items() if text not in errors[place]] == []
    assert len(marked) > 30
