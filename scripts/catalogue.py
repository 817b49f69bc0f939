"""Write what the transport suite asks for, case by case, and which broken adapters are caught, into the docs.

    python scripts/catalogue.py           write the tables into docs/conformance.md
    python scripts/catalogue.py --check   write nothing; fail where the page says something else

The numbers CF-1 to CF-126 are those of the catalogue that the suite was made from. A case names its numbers at the
beginning of its docstring; cases without one came later.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "scripts"), *(str(ROOT / "tests" / room) for room in ("transports", "stores", "codecs"))]

import test_conformance_planted as transports
import test_planted_codecs as codecs
import test_planted_stores as stores
from conformance import SEAMS, put

PAGE = ROOT / "docs" / "conformance.md"
NUMBERS = range(1, 127)
RULE = re.compile(r"(CF-\d+|[A-Z]-\d+): .+\.")
ABOUT_THE_SUITE = 125
"""CF-125 asks that each broken adapter is caught: `tests/transports/test_conformance_planted.py` is that case."""


def cases() -> dict[str, str]:
    """Return every case of the transport suite and what it says of itself, in the suite's order."""
    return {
        name: " ".join((case.__doc__ or "").split())
        for section in SEAMS[0].sections
        for name, case in vars(section).items()
        if name.startswith("test_")
    }


def numbered() -> dict[int, list[str]]:
    """Return the cases of each number of the catalogue."""
    found: dict[int, list[str]] = {}
    for name, said in cases().items():
        for number in re.findall(r"CF-(\d+)", said.partition(":")[0]):
            found.setdefault(int(number), []).append(name)
    return found


def tables() -> str:
    """Return what stands between the markers."""
    lines = ["## Cases of the transport suite", "", "| Number | Case | Rule |", "| --- | --- | --- |"]
    rows = [(number, name) for number, names in sorted(numbered().items()) for name in names]
    lines += [f"| CF-{number} | `{name}` | {_rule(cases()[name])} |" for number, name in rows]
    lines += [f"| | `{name}` | {_rule(said)} |" for name, said in cases().items() if not said.startswith("CF-")]
    lines += ["", "## Adapters that are broken on purpose", ""]
    for seam, caught in (
        ("Transports", transports.CAUGHT),
        ("Stores", [*stores.CAUGHT, *stores.CAUGHT_ON_DISK]),
        ("Codecs", codecs.CAUGHT),
    ):
        lines += [f"### {seam}", "", "| Adapter | Is broken so | Caught by |", "| --- | --- | --- |"]
        lines += [*_planted(caught), ""]
    return "\n".join(lines)


def _planted(caught: Sequence[tuple[object, str]]) -> Iterator[str]:
    by_adapter: dict[object, list[str]] = {}
    for adapter, case in caught:
        by_adapter.setdefault(adapter, []).append(case)
    for adapter, found in by_adapter.items():
        said = " ".join((adapter.__doc__ or "").split())
        yield f"| `{getattr(adapter, '__name__', '')}` | {said} | {', '.join(f'`{case}`' for case in found)} |"


def _rule(said: str) -> str:
    return said.partition(": ")[2].replace("|", "\\|")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page says something else")
    check = parser.parse_args(arguments).check
    page = PAGE.read_text("utf-8")
    wanted = put(page, tables())
    if check and page != wanted:
        print(f"error: {PAGE.name} says something else\nhint: run `make conformance`", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
