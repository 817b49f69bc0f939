"""Parts of ``tidewire dev`` by themselves: the look at files, the example of an event, the merged log."""

from __future__ import annotations

import asyncio
import enum
import json
import os
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from tidewire import event
from tidewire.cli.dev.example import example_of
from tidewire.cli.dev.log import Log
from tidewire.cli.dev.watch import Watch, python_files
from tidewire.cli.processes import Patience, Restarts
from tidewire.rules.events import definition_of
from tidewire.runtime.parts import Parts


class Colour(enum.Enum):
    """A field's type."""

    RED = "red"


@event("dev.plain.seen")
class Plain:
    """A plain class."""

    order_id: str
    total: Decimal
    when: datetime
    ident: UUID
    colour: Colour
    kind: Literal["a", "b"]
    note: str | None
    tags: list[str]
    sizes: dict[str, int]
    count: int = 3


@event("dev.data.seen")
@dataclass(frozen=True)
class Data:
    """A dataclass."""

    name: str
    ok: bool


@event("dev.struct.seen")
class Struct(msgspec.Struct, frozen=True):
    """A msgspec Struct."""

    price: float


@event("dev.attrs.seen")
@attrs.frozen
class Attrs:
    """An attrs class."""

    count: int


@event("dev.model.seen")
class Model(pydantic.BaseModel):
    """A pydantic model."""

    order_id: str
    total: Decimal


@event("dev.strict.seen")
class Strict(pydantic.BaseModel):
    """A model with a rule that no guess meets."""

    code: str = pydantic.Field(pattern=r"^[A-Z]{9}$")


@pytest.mark.parametrize("cls", [Plain, Data, Struct, Attrs, Model])
def test_an_example_is_such_an_event(cls: type) -> None:
    """The example of an event can be decoded as that event, whatever kind of class it is."""
    data = example_of(definition_of(cls))
    assert isinstance(Parts().codec_for(cls).decode(data.encode()), cls)


def test_an_example_that_the_class_refuses_is_not_shown() -> None:
    """Where no example is found, none is shown."""
    assert "" == example_of(definition_of(Strict))


def test_only_python_files_of_the_project_are_looked_at(tmp_path: Path) -> None:
    """Hidden folders, virtual environments and what tools make are left out."""
    for name in ("a.py", "shop/b.py", ".git/c.py", "env/pyvenv.cfg", "env/d.py", "shop/__pycache__/e.py", "f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert ["a.py", "b.py"] == sorted(entry.name for entry in python_files(tmp_path))


def test_changes_that_come_together_are_told_together(tmp_path: Path) -> None:
    """Written, new and removed files are one answer once nothing moves any more."""
    for name in ("a.py", "b.py", "same.py"):
        (tmp_path / name).write_text("x = 1\n")

    async def look() -> set[str]:
        watch = Watch(tmp_path)
        (tmp_path / "a.py").write_text("x = 22\n")
        (tmp_path / "b.py").unlink()
        (tmp_path / "c.py").touch()
        async with asyncio.timeout(30):
            return await watch.changed()

    root = os.path.realpath(tmp_path)
    assert {f"{root}/a.py", f"{root}/b.py", f"{root}/c.py"} == asyncio.run(look())


def test_the_delay_doubles_up_to_half_a_minute() -> None:
    """A process that keeps ending is started again ever later, at most every 30 s."""
    restarts = Restarts(Patience(grace=Patience.restart_after))
    delays: list[float] = []
    for _ in range(12):
        restarts.started()
        assert not restarts.ended()
        delays.append(restarts.delay().total_seconds())
    assert [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30] == delays


RECORD = b'{"time": "x", "level": "warning", "event": "tidewire.consumer.retry", "process": 7, "delay_s": 0.5}\n'


def test_a_record_becomes_a_line_of_its_service(capsys: pytest.CaptureFixture[str]) -> None:
    """For people: time, service, level if it matters, name and fields; all names stand in one column."""
    log = Log(as_json=False, colour=False)
    log.expect(["billing", "mail"])
    log.output("mail", RECORD)
    log.output("billing", b"{not ours}\n")
    first, second = capsys.readouterr().out.splitlines()
    assert "mail     warning consumer.retry delay_s=0.5" == first[13:]
    assert "billing  {not ours}" == second[13:]


def test_a_record_becomes_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    """With ``--json``: one object a line with time, service, level, event, and its fields."""
    log = Log(as_json=True, colour=True)
    log.output("mail", RECORD)
    log.output("mail", b"\xff two \x1b[1m words")
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert ("mail", "warning", "tidewire.consumer.retry", 0.5, 7) == (
        first["service"],
        first["level"],
        first["event"],
        first["delay_s"],
        first["process"],
    )
    assert ("output", "\ufffd two \x1b[1m words") == (second["event"], second["text"])
