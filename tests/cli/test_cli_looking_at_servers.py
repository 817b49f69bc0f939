"""Commands that look into Kafka and RabbitMQ say what those can tell, and never pass off as nothing what is unknown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import pytest

from tidewire.cli import exits
from tidewire.cli.main import main
from tidewire.config import open_transport
from tidewire.model import GroupSpec, Message, Topic, TopicSpec

Run: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A function that runs a command on a broker, and returns its exit code and what it prints, of both kinds."""
    monkeypatch.chdir(tmp_path)

    def command(url: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("TIDEWIRE_BROKER", url)
        code = main(arguments)
        return code, *capsys.readouterr()

    return command


def filled(url: str) -> tuple[str, list[str]]:
    """Return a new topic of two lanes with a group, and the ids of six events of four keys on it, in order."""
    topic = f"looks.t{uuid4().hex[:8]}"
    ids = [f"{topic}-{number}" for number in range(6)]

    async def fill() -> None:
        async with open_transport(url) as transport:
            await transport.provision([TopicSpec(topic, lanes=2)], [GroupSpec("billing", [topic])])
            for number, one in enumerate(ids):
                headers = {"ce-type": f"{topic}.placed", "ce-correlationid": ids[0]}
                (receipt,) = await transport.publish(
                    [Message(Topic(topic), one, "s", f"k-{number % 4}", headers, b"{}")]
                )
                assert receipt.ok

    asyncio.run(fill())
    return topic, ids


def test_a_replay_from_a_position_of_kafka_tells_what_comes_again(kafka_url: str, run: Run) -> None:
    """`tidewire replay` counts from the position on that `tidewire tail` showed; what is no position is told how one
    looks. Who has read an event `tidewire trace` does not know there, and says so."""
    topic, ids = filled(kafka_url)
    _, tail, _ = run(kafka_url, "tail", topic, "--no-follow", "--json")
    seen = [json.loads(line) for line in tail.splitlines()]
    assert ids == [one["id"] for one in seen]
    replay = ["replay", topic, "--group", "billing", "--from"]
    code, again, said = run(kafka_url, *replay, seen[2]["position"], "--dry-run", "--json")
    assert (exits.OK, 4) == (code, json.loads(again)["messages"]), said
    code, _, said = run(kafka_url, *replay, "7", "--yes")
    assert (exits.USAGE, True) == (code, "`tidewire tail --json` shows" in said), said
    _, tree, _ = run(kafka_url, "trace", ids[0])
    assert (6, 0) == (tree.count("nobody can tell who read it"), tree.count("nobody reads it")), tree


def test_what_rabbitmq_cannot_tell_is_no_nothing(rabbitmq_url: str, run: Run) -> None:
    """How many events a topic holds RabbitMQ does not know: `tidewire topics` shows no number. What cannot be looked at
    is refused with what can."""
    topic, ids = filled(rabbitmq_url)
    _, listed, _ = run(rabbitmq_url, "topics")
    (line,) = [line for line in listed.splitlines() if line.startswith(f"{topic} ")]
    assert [topic, "2", "-", "-", "-"] == line.split()
    _, shown, _ = run(rabbitmq_url, "topics", topic)
    assert (True, False) == (topic in shown, "None" in shown), shown
    code, _, said = run(rabbitmq_url, "find", ids[0])
    assert (exits.USAGE, True) == (code, "`tidewire dlq list`" in said), said
