"""One round of a campaign: what it did, counted, and what it found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Round:
    """*figures* add up over rounds; *violations* are sentences that name the seed."""

    figures: Counter[str]
    violations: list[str] = field(default_factory=list)


class NotPossible(Exception):
    """This machine cannot run a campaign; says why and what would help."""
