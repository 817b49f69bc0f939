"""What is found when something is looked at: facts, and what is to be mended."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Finding", "Section"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something to know or to mend: *code* is stable, *where* names the place, *fix* says what to do."""

    level: Literal["error", "warning"]
    code: str
    where: str
    what: str
    fix: str

    @property
    def text(self) -> str:
        """The finding in one line."""
        return f"{self.where}: {self.what}; {self.fix}"


class Section(msgspec.Struct, kw_only=True):
    """What was found in one place, *name*: facts with their headings, and findings. It is filled while one looks."""

    name: str
    facts: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    findings: list[Finding] = msgspec.field(default_factory=list[Finding])

    def fact(self, heading: str, value: object) -> None:
        """Note what is so."""
        self.facts[heading] = str(value)

    def error(self, code: str, what: str, *, fix: str) -> None:
        """Note what is wrong."""
        self.findings.append(Finding(level="error", code=code, where=self.name, what=what, fix=fix))

    def warning(self, code: str, what: str, *, fix: str) -> None:
        """Note what may become wrong."""
        self.findings.append(Finding(level="warning", code=code, where=self.name, what=what, fix=fix))
