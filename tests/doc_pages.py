"""The documentation as the tests read it: fenced blocks with their marks, links, headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from source_tree import ROOT

FENCE = re.compile(r"^(?P<indent> {0,3})```(?P<language>[\w-]*)\s*$")
MARK = re.compile(r"^<!--\s*(?P<mark>.*?)\s*-->$")
FILE_NAME = re.compile(r"^#\s*(?P<name>[\w./-]+\.\w+)\s*$")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+\s+(?P<text>.*?)\s*$")


@dataclass(frozen=True)
class Block:
    """One fenced block: where its first line is, its language, its text, and the HTML comment above it."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""

    @property
    def file_name(self) -> str:
        """The file that the block names in its first line, or nothing."""
        named = FILE_NAME.match(self.text.split("\n", 1)[0])
        return named["name"] if named else ""

    @property
    def commands(self) -> list[str]:
        """The commands of a console block, continued lines joined, comments and trailing dots dropped."""
        text = self.text.replace("\\\n", " ")
        found = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        return [re.sub(r"\s+#.*$", "", command).strip() for command in found]

    @property
    def output(self) -> list[str]:
        """The lines that a console block shows as output."""
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith(("$ ", "  --", "…"))]


@dataclass(frozen=True)
class Page:
    """One Markdown page of the repository; *name* is its path from the root."""

    name: str
    text: str

    @property
    def blocks(self) -> list[Block]:
        """Every fenced block, in order."""
        return list(_blocks(self))

    @property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        lines = self.text.splitlines()
        for block in self.blocks:
            for number in range(block.line - 2, block.line + block.text.count("\n")):
                lines[number] = ""
        return "\n".join(lines)

    @property
    def links(self) -> list[str]:
        """Every link target that is not a web address."""
        targets = [found["target"] for found in LINK.finditer(self.prose)]
        return [target for target in targets if not re.match(r"[a-z]+:", target)]

    @property
    def anchors(self) -> set[str]:
        """The anchors that the headings give, as the usual Markdown hosts spell them."""
        headings = [found["text"] for line in self.prose.splitlines() if (found := HEADING.match(line))]
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def pages() -> list[Page]:
    """Return every page of the repository that people read."""
    top = sorted(ROOT.glob("*.md"))
    below = [path for folder in ("docs", "examples") for path in sorted((ROOT / folder).rglob("*.md"))]
    return [_page(path) for path in [*top, *below]]


def page(name: str) -> Page:
    """Return one page by its path from the root."""
    return _page(ROOT / name)


def navigation() -> list[str]:
    """Return the pages that the site's navigation names, in order, by their path from ``docs/``."""
    return _named(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])


def _named(part: Any) -> list[str]:
    if isinstance(part, str):
        return [part]
    return [name for entry in (part.values() if isinstance(part, dict) else part) for name in _named(entry)]


def _page(path: Path) -> Page:
    return Page(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))


def _blocks(page: Page) -> Iterator[Block]:
    lines = page.text.splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if not opening:
            continue
        end = next(i for i in range(number, len(lines)) if lines[i].strip() == "```")
        above = MARK.match(lines[number - 2]) if number > 1 else None
        text = "\n".join(line.removeprefix(opening["indent"]) for line in lines[number:end])
        yield Block(page.name, number + 1, opening["language"], text, above["mark"] if above else "")
        number = end + 1
