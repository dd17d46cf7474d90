"""Every item of the fault catalogue is shown by a test, or is a decision that the documentation tells."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests import catalogue
from tests.proofs import cli

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"W": 20, "R": 23, "N": 22, "P": 16, "S": 20, "X": 19, "Rule ": 14}


def test_the_catalogue_is_whole() -> None:
    """No number is left out, and each has a title of its own."""
    numbers = [
        f"{kind}{number}" if kind == "Rule " else f"{kind}{number:02}"
        for kind, size in SIZES.items()
        for number in range(1, size + 1)
    ]
    assert list(catalogue.ITEMS) == numbers
    assert [title for title, count in Counter(catalogue.ITEMS.values()).items() if count > 1] == []


def test_every_item_is_shown_or_decided() -> None:
    """By one test at least that is not always skipped; never is it both; and what is still missing is said exactly."""
    shown = catalogue.tests_by_item().keys()
    assert shown & catalogue.DECISIONS.keys() == set()
    missing = catalogue.ITEMS.keys() - shown - catalogue.DECISIONS.keys()
    assert sorted(missing) == sorted(catalogue.MISSING)


def test_no_test_claims_what_is_no_item() -> None:
    """A misspelt number would show nothing."""
    assert catalogue.unknown_tags() == []


@pytest.mark.parametrize("item", catalogue.DECISIONS)
def test_decisions_are_told(item: str) -> None:
    """Each names an item, and its number stands on the page that says what is promised, or what is out of scope."""
    assert item in catalogue.ITEMS
    pages = [page for page in (ROOT / name for name in catalogue.PAGES) if page.exists()]
    if not pages:
        pytest.skip("the pages are not written yet")
    assert any(item in page.read_text(encoding="utf-8") for page in pages)


def test_proofs_that_show_something_are_run() -> None:
    """A proof that the command does not know shows nothing."""
    run = {f"proofs/{name}.py" for name in cli.PROOFS}
    assert {file for file, name, _ in catalogue.tagged_functions() if not name} <= run


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("W03, R14: a declared length.", ["W03", "R14"]),
        ("Rule 8, S09, 7: a slot.", ["Rule 8", "S09"]),
        ("W99: no such item.", ["W99"]),
        ("7: as the design says of W03.", []),
        ("W03 is refused.", []),
        ("The wire, W03: refused.", []),
        ("", []),
    ],
)
def test_tags(text: str, tags: list[str]) -> None:
    """Only what stands before the first colon, in a list that begins with an item."""
    assert catalogue.tags_of(text) == tags
