"""`tidewire bridge`, by real processes that are killed on the way, between every two brokers that can be had here."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path

import pytest
from bridge_world import KEYS, bridged, command, handle, has, in_order, publish, stored, until

from tidewire.cli import exits

TOPIC = "bridged.order"


@pytest.fixture(params=["sqlite", "postgresql", "kafka"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a broker of each kind, to copy to or from."""
    fixture = {"postgresql": "postgresql_url", "kafka": "kafka_url"}.get(request.param)
    return f"sqlite:///{tmp_path}/other.db" if fixture is None else str(request.getfixturevalue(fixture))


@pytest.fixture
def here(tmp_path: Path) -> str:
    """The URL of an embedded broker."""
    return f"sqlite:///{tmp_path}/here.db"


def test_nothing_is_lost_and_nothing_happens_twice_though_it_is_killed(here: str, other: str, tmp_path: Path) -> None:
    """``kill -9`` while producers publish: the next run goes on; each key keeps its order, each effect is one."""
    store = f"sqlite:///{tmp_path}/billing.db"
    asyncio.run(publish(here, range(300)))
    asyncio.run(handle(here, store, until_rows=150))

    async def meanwhile() -> None:
        await asyncio.gather(publish(here, range(300, 1_500)), until(lambda: has(other, 400, TOPIC)))

    with subprocess.Popen(command(here, other, "--topic", TOPIC, "--provision", "--follow")) as following:
        try:
            asyncio.run(meanwhile())
        finally:
            following.kill()
    said = bridged(here, other, "--topic", TOPIC)
    assert {"topics": [TOPIC], "stopped": False} == {name: said[name] for name in ("topics", "stopped")}
    before, after = asyncio.run(stored(here, TOPIC)), asyncio.run(stored(other, TOPIC))
    assert in_order(before) == in_order(after)
    assert 1_500 <= len(after) <= 2_000
    assert {(one.id, one.source, one.body) for one in before} == {(one.id, one.source, one.body) for one in after}
    numbers = asyncio.run(handle(other, store, until_rows=1_500))
    assert list(range(1_500)) == sorted(numbers)
    for key in range(KEYS):
        assert list(range(key, 1_500, KEYS)) == [number for number in numbers if number % KEYS == key]


def test_the_way_back_is_the_same_command(here: str, other: str) -> None:
    """From a server to the embedded broker; a second run has nothing to do, and says so."""
    asyncio.run(publish(other, range(200)))
    before = asyncio.run(stored(other, TOPIC))
    said = bridged(other, here, "--topic", TOPIC, "--provision")
    assert len(before) == said["stored"] + said["known"]
    assert in_order(before) == in_order(asyncio.run(stored(here, TOPIC)))
    assert (0, 0) == tuple(bridged(other, here, "--topic", TOPIC)[name] for name in ("stored", "known"))


def test_a_signal_ends_what_follows(here: str, tmp_path: Path) -> None:
    """SIGTERM is no failure: it says what was copied, and the next one goes on behind it."""
    there = f"sqlite:///{tmp_path}/there.db"
    asyncio.run(publish(here, range(50)))
    words = command(here, there, "--topic", TOPIC, "--provision", "--follow", "--json")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
        asyncio.run(until(lambda: has(there, 50, TOPIC)))
        following.send_signal(signal.SIGTERM)
        said = json.loads(following.communicate(timeout=30)[0])
    assert (0, 50, True) == (following.returncode, said["stored"], said["stopped"])


def test_what_is_missing_is_named(here: str, tmp_path: Path) -> None:
    """A broker that is not there, and a topic on neither side or on one alone, is named with the fix; nothing is made
    or copied."""
    there = f"sqlite:///{tmp_path}/there.db"
    asyncio.run(publish(here, range(1)))
    assert "no broker file" in bridged(here, there, "--topic", TOPIC, code=exits.USAGE)["said"]
    assert not (tmp_path / "there.db").exists()
    (tmp_path / "there.db").touch()
    assert "no topic bridged.else" in bridged(here, there, "--topic", "bridged.else", code=exits.USAGE)["said"]
    assert "--provision" in bridged(here, there, "--topic", TOPIC, code=exits.USAGE)["said"]
    assert "one broker" in bridged(here, here, "--topic", TOPIC, code=exits.USAGE)["said"]
