"""The catalogue of cases: nothing that it asks for is missing from the suite, and the page is no older than both."""

from __future__ import annotations

import sys

from source_tree import ROOT

sys.path.append(str(ROOT / "scripts"))
import catalogue


def test_every_number_of_the_catalogue_has_a_case() -> None:
    """CF-1 to CF-126 each have a case in the suite; the one about the suite itself is the test of broken adapters."""
    assert set(catalogue.NUMBERS) - {catalogue.ABOUT_THE_SUITE} == set(catalogue.numbered())


def test_every_case_says_its_rule() -> None:
    """A case begins with its number, or with the letter of its section, and says a sentence."""
    unsaid = [name for name, said in catalogue.cases().items() if not catalogue.RULE.fullmatch(said)]
    assert [] == unsaid


def test_the_page_says_what_there_is() -> None:
    """Who adds a case or a broken adapter runs `make conformance`."""
    assert 0 == catalogue.main(["--check"])
