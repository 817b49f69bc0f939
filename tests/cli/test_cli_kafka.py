"""The operators' commands over a real Kafka, and what a missing extra says."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from tidewire.chance import UUID7Ids
from tidewire.cli import main as cli
from tidewire.config import masked
from tidewire.model import DeadLetter, Delivery, GroupSpec, Message, Reason, Topic, TopicSpec
from tidewire.rules.letters import dead_letter
from tidewire.transports.kafka import open_kafka_transport


def test_operators_see_and_act_on_kafka(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Topics, groups and dead letters are listed, redriven and discarded, and the doctor reaches the broker."""
    monkeypatch.setenv("TIDEWIRE_BROKER", kafka_url)
    topic, group = f"t{UUID7Ids().event_id()[-12:]}.order", f"g{UUID7Ids().event_id()[-12:]}"
    asyncio.run(_bury(kafka_url, topic, group))

    def say(*words: str) -> str:
        assert 0 == cli.main(list(words))
        return capsys.readouterr().out

    listed = [one for one in json.loads(say("topics", "--json"))["topics"] if one["name"] == topic]
    assert [(3, 4)] == [(one["lanes"], one["messages"]) for one in listed]
    assert f"{group}  {topic}" in say("groups", "--topic", topic)
    letters = json.loads(say("dlq", "list", "--group", group, "--json"))["letters"]
    assert ["a-0", "a-1", "a-2"] == [one["id"] for one in letters]
    say("dlq", "redrive", "--group", group, "--yes", "a-0")
    say("dlq", "discard", "--group", group, "--reason", "a test", "--yes", "a-1")
    letters = json.loads(say("dlq", "list", "--group", group, "--json"))["letters"]
    assert ["a-2"] == [one["id"] for one in letters]
    assert "reachable  yes" in say("doctor")


async def _bury(url: str, topic: str, group: str) -> None:
    """Make a topic with one event and three dead letters."""
    async with open_kafka_transport(url) as transport:
        await transport.provision([TopicSpec(topic, 3)], [GroupSpec(group, [topic])])
        headers = {
            "ce-id": "a",
            "ce-source": "test",
            "ce-type": "shop.order.placed",
            "content-type": "application/json",
        }
        events = [
            Message(Topic(topic), f"a-{number}", "test", "k", {**headers, "ce-id": f"a-{number}"}, b"{}")
            for number in range(4)
        ]
        receipts = await transport.publish(events)
        verdict = DeadLetter(Reason.PERMANENT, "no good")
        letters = [
            dead_letter(Delivery(one, f"{topic}/0", 1, 0), verdict, group=group, failure=None, member="m")
            for one in events[:3]
        ]
        receipts = [*receipts, *await transport.publish(letters)]
        assert all(receipt.ok for receipt in receipts)


def test_a_missing_extra_names_itself() -> None:
    """Without confluent-kafka a kafka:// URL says what to install."""
    script = "import sys; sys.modules['confluent_kafka'] = None; from tidewire.config import open_transport\n"
    script += "try: open_transport('kafka://h')\nexcept Exception as error: print(type(error).__name__, error)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "MissingExtra" in done.stdout
    assert "pip install tidewire[kafka]" in done.stdout


def test_every_secret_of_a_url_is_masked() -> None:
    """The password, and those that stand behind the question mark, are not shown."""
    url = "kafka://anna:s3cret@h1:9092,h2:9092?client.ssl.key.password=hush&timeout=3&client.oauth.secret=shh"
    assert "kafka://anna:***@h1:9092,h2:9092?client.ssl.key.password=***&timeout=3&client.oauth.secret=***" == masked(
        url
    )
