"""docs/hazards.md: no hazard of the catalogue is left out, and each test that it names exists."""

from __future__ import annotations

import re

import pytest

from doc_pages import page
from source_tree import python_files, sources

CATALOGUE = {"KA": 23, "RA": 17, "NA": 15, "RE": 12, "AW": 11, "OB": 17, "IN": 9, "SQ": 15, "AS": 10, "RT": 13} | {
    "SA": 9,
    "SC": 11,
}
ROW = re.compile(r"^\| (?P<id>[A-Z]{2}\d+) \| (?P<what>.+) \| (?P<answer>.+) \|$", re.MULTILINE)


def rows() -> list[tuple[str, str]]:
    """Return each hazard with its answer."""
    return [(found["id"], found["answer"]) for found in ROW.finditer(page("docs/hazards.md").text)]


def test_every_hazard_of_the_catalogue_is_answered() -> None:
    """Each has one row; a row that names no test says why the hazard does not apply."""
    expected = [f"{kind}{number}" for kind, count in CATALOGUE.items() for number in range(1, count + 1)]
    assert sorted(expected) == sorted(id_ for id_, _ in rows())
    silent = [id_ for id_, answer in rows() if "`test_" not in answer and not answer.startswith("does not apply")]
    assert [] == silent


def test_every_named_test_exists() -> None:
    """A test that was renamed or removed is noticed here."""
    defined = {
        name
        for module in [*python_files("tests"), *sources()]
        for name in re.findall(r"^\s*(?:async )?def (test_\w+)", module.text, re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", page("docs/hazards.md").text))
    assert len(named) > 50
    assert [] == sorted(named - defined)


@pytest.mark.parametrize("answer", ["`test_that_nobody_wrote`"])
def test_a_name_without_a_test_would_be_seen(answer: str) -> None:
    """The pattern reads names as the page writes them."""
    assert ["test_that_nobody_wrote"] == re.findall(r"`(test_\w+)`", answer)
