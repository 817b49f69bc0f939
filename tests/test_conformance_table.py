"""The table of what the suites prove: every case stands for one promise, and the page is no older than the suites."""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from xml.etree import ElementTree

import pytest

from source_tree import ROOT
from tidewire.testing.servers.processes import NoServer

sys.path.append(str(ROOT / "scripts"))
import capabilities
import conformance

REPORT = """<testsuites><testsuite>
<testcase classname="tests.codecs.test_conformance_json.TestJsonCodec" name="test_every_type_round_trips"/>
<testcase classname="tests.codecs.test_conformance_json.TestJsonCodec" name="test_bytes_are_not_text"/>
<testcase classname="tests.codecs.test_conformance_json.TestJsonCodec" name="test_any_event_round_trips">
<skipped message="not proven: needs the package hypothesis"/></testcase>
<testcase classname="tests.codecs.test_conformance_json.TestJsonCodec" name="test_unknown_fields_are_ignored">
<skipped message="capability evolves is False"/></testcase>
<testcase classname="tests.codecs.test_conformance_json.TestJsonCodec" name="test_threads_share_a_codec">
<failure message="no"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize("seam", conformance.SEAMS, ids=lambda seam: seam.name)
def test_every_section_stands_for_one_promise(seam: conformance.Seam) -> None:
    """Each section of a suite is under exactly one promise, and each promise has a section."""
    letters = [section.__name__.rsplit(".", 1)[-1][0] for section in seam.sections]
    assert sorted(letters) == sorted("".join(seam.promises.values()))
    assert set(seam.promises) == set(seam.cases().values())


def test_every_conformance_file_has_a_column() -> None:
    """A new adapter's test of the suite appears in the tables; the simulation's models of brokers are no adapters."""
    shown = {file for seam in conformance.SEAMS for file in seam.adapters.values()}
    suites = r"^class Test\w+\((Transport|Store|Codec)Conformance\):"
    there = {
        str(path.relative_to(ROOT))
        for folder in ("tests", "examples")
        for path in (ROOT / folder).rglob("test_*.py")
        if path.parent.name != "simulation" and re.search(suites, path.read_text("utf-8"), re.MULTILINE)
    }
    assert there == shown


def test_a_cell_says_what_was_not_proven() -> None:
    """Proven, skipped for a capability, not proven and broken are told apart, each with its number."""
    cells = conformance.read(ElementTree.fromstring(REPORT))
    texts = [cells.get(("tests/codecs/test_conformance_json.py", promise), conformance.Cell()).text()
             for promise in conformance.SEAMS[-1].promises]  # fmt: skip
    assert [
        "proven (2 cases); NOT PROVEN: 1 case, needs the package hypothesis",
        "BROKEN: test_threads_share_a_codec",
        "NOT PROVEN: no case ran",
        "1 case skipped: `evolves` is false",
    ] == texts


def test_only_what_is_between_the_markers_changes() -> None:
    """The rest of the page is a person's; a page without markers is refused."""
    page = f"above\n{conformance.BEGIN}\nold\n{conformance.END}\nbelow\n"
    once = conformance.put(page, "new\n")
    assert f"above\n{conformance.BEGIN}\n\nnew\n\n{conformance.END}\nbelow\n" == once
    assert once == conformance.put(once, "new\n")
    with pytest.raises(ValueError, match="no markers"):
        conformance.put("above\n", "new\n")


def test_the_pages_count_the_cases_that_there_are() -> None:
    """Who adds a case runs `make conformance`: each row of a page has as many cases as its sections."""
    for seam in conformance.SEAMS:
        page = (conformance.DOCS / seam.page).read_text("utf-8")
        text = page.partition(conformance.BEGIN)[2].partition(conformance.END)[0]
        table = text.partition(f"### {seam.name}\n")[2].partition("###")[0]
        promised = list(seam.cases().values())
        for promise in seam.promises:
            row = re.search(rf"^\| {re.escape(promise)} \|(.*)\|$", table, re.MULTILINE)
            assert row is not None, f"{seam.name}: no row says: {promise}"
            counts = [sum(map(int, re.findall(r"(\d+) cases?", cell))) for cell in row[1].split(" | ")]
            assert [promised.count(promise)] * len(seam.adapters) == counts, f"{promise}: run `make conformance`"


@pytest.mark.parametrize("scheme", capabilities.BROKERS)
def test_the_page_of_brokers_says_what_each_declares(scheme: str, request: pytest.FixtureRequest) -> None:
    """Who changes a capability runs `make conformance`: the column of each broker is what its adapter says now."""
    if fixture := {"kafka": "kafka_url", "amqp": "rabbitmq_url"}.get(scheme):  # starting another would take long
        opened: AbstractContextManager[str] = nullcontext(request.getfixturevalue(fixture))
    else:
        opened = capabilities.BROKERS[scheme]()
    try:
        with opened as url:
            said = asyncio.run(capabilities.declared(url))
    except NoServer as error:
        pytest.skip(f"not proven: needs a server: {error}")
    page = capabilities.PAGE.read_text("utf-8").partition(capabilities.BEGIN)[2].partition(capabilities.END)[0]
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.strip().splitlines()]
    place = header.index(f"`{scheme}:`")
    assert said == {row[0]: row[place] for row in rows}


def test_every_broker_is_on_the_page() -> None:
    """A transport that a URL of ours opens has its column, and its place in the list of what to take."""
    text = capabilities.PAGE.read_text("utf-8")
    shown = {title for title in conformance.SEAMS[0].adapters if "example" not in title}
    assert {re.sub(r"`(\w+):.*", r"\1", title) for title in shown} == set(capabilities.BROKERS)
    assert [] == [scheme for scheme in capabilities.BROKERS if f"| `{scheme}://" not in text]
