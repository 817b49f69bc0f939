"""The event classes of the codec suite: every type that an event is made of, and two versions of one event."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Optional
from uuid import UUID

__all__ = [
    "EXAMPLE",
    "Changed",
    "Demanding",
    "Everything",
    "Kind",
    "Narrow",
    "Newer",
    "Node",
    "Numbers",
    "Older",
    "Part",
    "Texts",
    "Times",
    "WrongPart",
    "WrongParts",
]


class Kind(enum.Enum):
    """An enum."""

    SMALL = "small"
    LARGE = "large"


@dataclass(frozen=True)
class Part:
    """Something nested."""

    name: str
    price: Decimal
    tags: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Everything:
    """Every type at once."""

    text: str
    number: int
    ratio: float
    price: Decimal
    when: datetime
    identity: UUID
    kind: Kind
    parts: list[Part]
    by_name: dict[str, Part]
    pause: timedelta
    raw: bytes
    yes: bool
    maybe: Part | None = None
    default: int = 7


EXAMPLE = Everything(
    text="Gr\u00fc\u00dfe \U0001f600",
    number=-12_345_678_901,
    ratio=0.1,
    price=Decimal("19.90"),
    when=datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
    identity=UUID("01890a5d-ac96-774b-bcce-b302099a8057"),
    kind=Kind.LARGE,
    parts=[Part("a", Decimal("0.01"), ["x", ""]), Part("", Decimal(-5))],
    by_name={"one": Part("b", Decimal("1e3")), "": Part("c", Decimal(0))},
    pause=timedelta(days=1, microseconds=1),
    raw=bytes(range(256)),
    yes=True,
    maybe=Part("d", Decimal(1)),
    default=0,
)


@dataclass(frozen=True)
class Numbers:
    """Numbers of every kind."""

    whole: int = 0
    ratio: float = 0.0
    price: Decimal = Decimal(0)


@dataclass(frozen=True)
class Texts:
    """A text, some texts and bytes."""

    text: str = ""
    texts: list[str] = field(default_factory=list[str])
    named: dict[str, str] = field(default_factory=dict[str, str])
    raw: bytes = b""


@dataclass(frozen=True)
class Times:
    """An instant and a span."""

    when: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    pause: timedelta = timedelta(0)


@dataclass(frozen=True)
class Node:
    """A class that holds itself, to any depth."""

    name: str = ""
    child: Optional[Node] = None  # noqa: UP045  (a class that names itself needs the long form to be resolved)


@dataclass(frozen=True)
class Older:
    """The first version of an event."""

    order_id: str
    count: int = 1


@dataclass(frozen=True)
class Newer:
    """A later version of it: a field more that has a default, one that is nullable, one that is nested."""

    order_id: str
    count: int = 1
    note: str = "none"
    paid: bool | None = None
    parts: list[Part] = field(default_factory=list[Part])


@dataclass(frozen=True)
class Narrow:
    """One number that must be there."""

    count: int


@dataclass(frozen=True)
class Demanding:
    """A version of it that asks for more than the first one has."""

    order_id: str
    part: Part


@dataclass(frozen=True)
class Changed:
    """A version of it with the same names and other types."""

    order_id: list[int]
    count: str


@dataclass(frozen=True)
class WrongPart:
    """A part whose price is a list."""

    name: str
    price: list[str]


@dataclass(frozen=True)
class WrongParts:
    """A version of it with parts of another type."""

    order_id: str
    parts: list[WrongPart]
