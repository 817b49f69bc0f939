"""Run the conformance suites for every adapter of this repository and write what they prove into the docs.

    python scripts/conformance.py           run, and write the tables into docs/brokers.md and docs/guarantees.md
    python scripts/conformance.py --check   run, and fail where a page says something else

The exit code is 1 if a case fails or a page differs, and then nothing is written.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

from tidewire.testing.codecs import suite as codecs
from tidewire.testing.stores import suite as stores
from tidewire.testing.transports import suite as transports

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BEGIN, END = "<!-- conformance: written by make conformance -->", "<!-- conformance: end -->"


@dataclass(frozen=True)
class Seam:
    """One seam: its suite's sections, what is promised in which of them, and the test file of each adapter.

    Its table stands on *page*.
    """

    name: str
    page: str
    sections: Sequence[ModuleType]
    promises: Mapping[str, str]
    adapters: Mapping[str, str]

    def cases(self) -> dict[str, str]:
        """Return the promise that each case stands for."""
        of_letter = {letter: promise for promise, letters in self.promises.items() for letter in letters}
        return {
            case: of_letter[section.__name__.rsplit(".", 1)[-1][0]]
            for section in self.sections
            for case in vars(section)
            if case.startswith("test_")
        }


SEAMS = (
    Seam(
        "Brokers",
        "brokers.md",
        transports.SECTIONS,
        {
            "What is published is stored, or said not to be": "a",
            "Every group gets everything, and a member's death only delays": "bh",
            "Events of one key keep their order": "c",
            "Nothing is settled before its effect, attempts are counted, a stale owner settles nothing": "dl",
            "Delays, retries, dead letters and redrives: in time, whole, to their group alone": "ef",
            "Slow consumers slow their source; cancelling and closing lose and leak nothing": "gm",
            "Topics, groups and headers arrive as they were given": "ij",
            "Where an event is, how far a group is and what an operator did can be seen": "ko",
            "All of this at once agrees with a model": "n",
            "A broker that is cut off, stands still, refuses or forgets loses nothing": "p",
            "A whole service on it keeps its keys in order and can be stopped at any moment": "q",
        },
        {
            "`memory://`": "tests/transports/test_conformance_memory.py",
            "`sqlite:///`": "tests/transports/test_conformance_sqlite.py",
            "`postgresql://`": "tests/transports/test_conformance_postgres.py",
            "`kafka://` (Apache Kafka 4.1)": "tests/transports/test_conformance_kafka.py",
            "`amqp://` (RabbitMQ 3.10)": "tests/transports/test_conformance_rabbitmq.py",
            "`directory:///` (example)": "examples/directory-broker/tests/test_conformance_directory.py",
        },
    ),
    Seam(
        "Stores",
        "guarantees.md",
        stores.SECTIONS,
        {
            "Row, mark and outgoing event commit together or not at all": "a",
            "An effect happens once, whoever tries it and how often": "b",
            "Outgoing events leave unchanged and in order, each partition by one relay at a time": "cd",
            "Failures and held keys are remembered": "e",
            "A zombie cannot commit": "f",
            "A recurring run happens once per store": "g",
            "Connections and processes share the store, and `kill -9` loses nothing": "h",
            "All of this at once agrees with a model": "i",
        },
        {
            "`memory://`": "tests/stores/test_conformance_memory_store.py",
            "`sqlite:///`": "tests/stores/test_conformance_sqlite_store.py",
            "`postgresql://`": "tests/stores/test_conformance_postgres_store.py",
        },
    ),
    Seam(
        "Codecs",
        "guarantees.md",
        codecs.SECTIONS,
        {
            "What goes in comes out, or is refused when it goes in": "a",
            "One event has one body, in every process": "b",
            "Whatever bytes come are an event or a `DecodeError`, soon": "c",
            "Newer and older versions of an event do each other no harm": "d",
        },
        {"JSON": "tests/codecs/test_conformance_json.py"},
    ),
)


@dataclass
class Cell:
    """What became of the cases of one promise at one adapter."""

    proven: int = 0
    broken: list[str] = field(default_factory=list[str])
    skipped: Counter[str] = field(default_factory=Counter[str])

    def text(self) -> str:
        """Return the cell as the page shows it."""
        said: list[str] = [f"proven ({_cases(self.proven)})"] if self.proven else []
        for reason, count in sorted(self.skipped.items()):
            lacking = re.fullmatch(r"capability (\w+) is (\w+)", reason)
            if lacking:
                said.append(f"{_cases(count)} skipped: `{lacking[1]}` is {lacking[2].lower()}")
            else:
                said.append(f"NOT PROVEN: {_cases(count)}, {reason.removeprefix('not proven: ')}")
        if self.broken:
            said.append(f"BROKEN: {', '.join(self.broken)}")
        return "; ".join(said) or "NOT PROVEN: no case ran"


def _cases(count: int) -> str:
    return f"{count} case" if count == 1 else f"{count} cases"


def run() -> tuple[dict[tuple[str, str], Cell], int]:
    """Run every case of every adapter; return the cells by test file and promise, and pytest's exit code.

    What pytest says goes to standard error.
    """
    files = [file for seam in SEAMS for file in seam.adapters.values()]
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        asked = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        code = subprocess.run(asked, cwd=ROOT, stdout=sys.stderr, check=False).returncode  # noqa: S603
        return read(ElementTree.parse(report).getroot()), code  # noqa: S314  (pytest has just written it)


def read(report: ElementTree.Element) -> dict[tuple[str, str], Cell]:
    """Return the cells of a report of pytest's, by test file and promise."""
    promises = {
        (file, case): promise
        for seam in SEAMS
        for file in seam.adapters.values()
        for case, promise in seam.cases().items()
    }
    cells: dict[tuple[str, str], Cell] = {}
    for one in report.iter("testcase"):
        file = one.attrib["classname"].rpartition(".")[0].replace(".", "/") + ".py"
        case = one.attrib["name"]
        cell = cells.setdefault((file, promises[file, case]), Cell())
        skipped = one.find("skipped")
        if one.find("failure") is not None or one.find("error") is not None:
            cell.broken.append(case)
        elif skipped is not None:
            cell.skipped[skipped.attrib["message"]] += 1
        else:
            cell.proven += 1
    return cells


def tables(page: str, cells: Mapping[tuple[str, str], Cell]) -> str:
    """Return what stands between the markers of *page*: a table to each of its seams."""
    lines = ["## What the suites prove", ""]
    lines += [
        "Every adapter passes the same cases, which are shipped as `tidewire.testing`.",
        "A case is skipped only for a capability that the adapter declares, and the table names it with its value.",
        "What this environment cannot show is said to be not proven.",
        "",
    ]
    for seam in SEAMS:
        if seam.page == page:
            lines += [f"### {seam.name}", "", *_table(seam, cells), ""]
    return "\n".join(lines)


def _table(seam: Seam, cells: Mapping[tuple[str, str], Cell]) -> Iterator[str]:
    yield "| " + " | ".join(["Promise", *seam.adapters]) + " |"
    yield "| --- " * (1 + len(seam.adapters)) + "|"
    for promise in seam.promises:
        found = [cells.get((file, promise), Cell()).text() for file in seam.adapters.values()]
        yield "| " + " | ".join([promise, *found]) + " |"


def put(page: str, text: str, *, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """Return *page* with *text* between its *markers*.

    Raises:
        ValueError: the page has none.
    """
    before, begin, rest = page.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise ValueError(f"the page has no markers: {' … '.join(markers)}")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write or check the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page says something else")
    check = parser.parse_args(arguments).check
    cells, code = run()
    pages = sorted({seam.page for seam in SEAMS})
    said = {page: tables(page, cells) for page in pages}
    print("\n".join(said.values()))
    if code != 0:
        broken = [f"{file}: {case}" for (file, _), cell in cells.items() for case in cell.broken]
        print(f"error: {len(broken)} cases failed (pytest: {code})", *broken, sep="\n  ", file=sys.stderr)
        return 1
    there = {page: (DOCS / page).read_text("utf-8") for page in pages}
    wanted = {page: put(there[page], said[page]) for page in pages}
    other = [page for page in pages if there[page] != wanted[page]]
    if check and other:
        print(f"error: {', '.join(other)}: says something else\nhint: run `make conformance`", file=sys.stderr)
        return 1
    if not check:
        for page in other:
            (DOCS / page).write_text(wanted[page], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
