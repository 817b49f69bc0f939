"""Exports and imports: every byte comes back, damage is named, nothing is there twice."""

from __future__ import annotations

import asyncio
import base64
import stat
from pathlib import Path

import msgspec
import pytest
from operations_world import ANN, GROUP, TOPIC, everything, ids, letter, letters, plan_of, provisioned
from runtime_world import Opened

from tidewire.errors import ConfigurationError
from tidewire.model import DeadChannel, Message
from tidewire.operations.audit import acts_of
from tidewire.operations.letter_files import export_letters, import_letters, line_of, read_file
from tidewire.operations.redrive import discard
from tidewire.operations.selection import Letter, Selection
from tidewire.transports.memory import MemoryBroker, open_memory_transport

ODD = [
    letter("1", key="k", note="Größe \u2028 🌊"),
    Message(DeadChannel(TOPIC, GROUP), "", "", None, {"dl-reason": "unknown-type"}, bytes(range(256))),
    letter("3", tenant=""),
]


def test_what_was_exported_comes_back_byte_for_byte(opened: Opened, tmp_path: Path) -> None:
    """Export, discard, import: the same messages in the same order, foreign ones without an id included."""
    path = tmp_path / "letters.jsonl"

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish(ODD)
            before = [browsed.message for browsed in await letters(world)]
            assert 3 == await export_letters(world.transport, everything(), path)
            assert before == [browsed.message for browsed in await letters(world)]
            await world.transport.remove(DeadChannel(TOPIC, GROUP), [one.position for one in await letters(world)])
            result = await import_letters(world.transport, path, by=ANN)
            assert (3, 3, 0) == (result.lines, result.added, result.there)
            assert before == [browsed.message for browsed in await letters(world)]
            assert ["begun", "done"] == [act.state async for _, act in acts_of(world.transport)]

    asyncio.run(scenario())


def test_an_export_is_for_its_owner_only_and_holds_plain_lines(opened: Opened, tmp_path: Path) -> None:
    """Bodies are private; a line can be read by anything that reads JSON."""
    path = tmp_path / "letters.jsonl"

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter("1"), letter("2", key="k")])
            assert 1 == await export_letters(world.transport, Selection(key="k"), path)

    asyncio.run(scenario())
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    (line,) = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    assert ("2", "k", TOPIC, GROUP, b'{"order_id":"1"}') == (
        line["id"],
        line["key"],
        line["topic"],
        line["group"],
        base64.b64decode(line["body"]),
    )
    assert "permanent" == line["headers"]["dl-reason"]
    assert [path] == list(tmp_path.glob("*.jsonl*"))


def test_an_import_can_be_repeated(opened: Opened, tmp_path: Path) -> None:
    """What is there is skipped, within the file too; a second import changes nothing."""
    path = tmp_path / "letters.jsonl"

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter(str(n)) for n in range(250)])
            await export_letters(world.transport, everything(), path)
            path.write_bytes(path.read_bytes() * 2)
            plan = await plan_of(world, Selection(ids=("7", "240")), whole_keys=False)
            await discard(world.transport, plan, by=ANN, reason="test")
            first = await import_letters(world.transport, path, by=ANN)
            second = await import_letters(world.transport, path, by=ANN)
            assert (2, 498) == (first.added, first.there)
            assert (0, 500, False) == (second.added, second.there, second.changed)
            assert sorted(str(n) for n in range(250)) == sorted(await ids(world))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda line: line[: len(line) // 2], "line 2"),
        (lambda line: line.replace(b'"key":"k"', b'"key":"j"'), "line 2: its digest"),
        (lambda line: line.replace(b'"format":1', b'"format":9'), "line 2: format 9"),
        (lambda line: line.replace(b'"topic"', b'"subject"'), "line 2"),
        (lambda line: line.replace(b'"body":"', b'"body":"?'), "line 2: the body is not base64"),
        (lambda line: b"\xff\xfe", "line 2"),
        (lambda line: b"[" * 100_000, "line 2"),
        (lambda line: b"{" + b" " * (8 << 20) + b"}", "line 2"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_imported(
    opened: Opened, tmp_path: Path, change: object, what: str
) -> None:
    """Half an import would be worse than none: every line is checked first."""
    path = tmp_path / "letters.jsonl"
    lines = [line_of(Letter(letter(str(n), key="k"), n)).rstrip(b"\n") for n in range(3)]
    lines[1] = change(lines[1])  # type: ignore[operator]
    path.write_bytes(b"\n".join(lines) + b"\n")

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            with pytest.raises(ConfigurationError, match="damaged") as raised:
                await import_letters(world.transport, path, by=ANN)
            assert what in raised.value.message
            assert [] == await ids(world)
            assert [] == [act async for act in acts_of(world.transport)]

    asyncio.run(scenario())


def test_damage_is_listed_up_to_twenty_lines(tmp_path: Path) -> None:
    """A file that is no export at all is not printed back whole."""
    path = tmp_path / "letters.jsonl"
    path.write_bytes(b"no\n" * 1_000)
    with pytest.raises(ConfigurationError) as raised:
        asyncio.run(read_file(path))
    assert 20 == raised.value.message.count("line ")


def test_a_file_of_another_broker_is_refused(opened: Opened, tmp_path: Path) -> None:
    """Letters of a group that is not here have no dead channel to go back to; nothing is made for them."""
    path = tmp_path / "letters.jsonl"
    path.write_bytes(line_of(Letter(letter("1"), 1)))

    async def scenario() -> None:
        async with opened() as world:
            with pytest.raises(ConfigurationError, match="has no group 'billing' on topic"):
                await import_letters(world.transport, path, by=ANN)

    asyncio.run(scenario())


def test_a_letter_that_the_broker_refuses_ends_the_import_and_is_named(tmp_path: Path) -> None:
    """What went before it is there; the file can be imported again."""
    path = tmp_path / "letters.jsonl"
    path.write_bytes(b"".join(line_of(Letter(letter(str(n)), n)) for n in range(150)))

    async def scenario() -> None:
        broker = MemoryBroker()
        async with open_memory_transport(broker) as transport:
            world = _World(transport)
            await provisioned(world)
            broker.refuse = lambda message: "full" if message.id == "120" else None
            with pytest.raises(ConfigurationError, match="line 121: the broker did not take the letter: rejected full"):
                await import_letters(transport, path, by=ANN)
            assert 149 == len(await ids(world))
            end = [act async for _, act in acts_of(transport)][-1]
            assert ("failed", 149) == (end.state, end.count)
            broker.refuse = None
            assert 1 == (await import_letters(transport, path, by=ANN)).added

    asyncio.run(scenario())


class _World:
    """A transport where the helpers expect a world."""

    def __init__(self, transport: object) -> None:
        self.transport = transport


@pytest.mark.parametrize("name", ["no/such/folder.jsonl", "file/below", "."])
def test_a_file_that_cannot_be_written_is_an_error_with_its_name(opened: Opened, tmp_path: Path, name: str) -> None:
    """No part file is left behind."""
    (tmp_path / "file").write_text("")

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter("1")])
            with pytest.raises(ConfigurationError, match="cannot write"):
                await export_letters(world.transport, everything(), tmp_path / name)

    asyncio.run(scenario())
    assert [] == list(tmp_path.rglob("*.part"))


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    """The file appears whole or not at all."""
    path = tmp_path / "letters.jsonl"
    path.write_text("old")

    async def scenario() -> None:
        broker = MemoryBroker()
        async with open_memory_transport(broker) as transport:
            with pytest.raises(ConfigurationError):
                await export_letters(transport, Selection(topic="no.such"), path)

    asyncio.run(scenario())
    assert "old" == path.read_text()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """The message names the file and the cause."""
    with pytest.raises(ConfigurationError, match="cannot read"):
        asyncio.run(read_file(tmp_path / "nothing"))
