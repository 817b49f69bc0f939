"""Brokers and stores of other packages, found by the scheme of their URL.

Each test makes an installed package by hand: a module, and the ``.dist-info`` that `pip install` would have written.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tidewire.clock import SystemClock
from tidewire.config import open_store, open_transport
from tidewire.errors import ConfigurationError, TransportRefused
from tidewire.model import TopicSpec

Install = Callable[[str, str, str], None]

BROKER = """
from tidewire.errors import TransportRefused
from tidewire.transports.memory import open_memory_transport

asked = []

def open_broker(url, *, create=True):
    asked.append((url, create))
    if not create:
        raise TransportRefused("there is no such broker")
    return open_memory_transport()
"""

STORE = """
from tidewire.stores.memory import open_memory_store

asked = []

def open_rows(url, *, create, clock, poll):
    asked.append((url, create, clock, poll))
    return open_memory_store(clock=clock)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs a package: its name, its entry points, the text of its module."""
    monkeypatch.syspath_prepend(tmp_path)

    def act(name: str, entry_points: str, text: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)

    return act


def _has_a_topic(url: str) -> bool:
    """Make a topic on the broker, and say whether it is there then."""

    async def act() -> bool:
        async with open_transport(url) as transport:
            await transport.provision([TopicSpec("shop.order")], [])
            (change,) = await transport.provision([TopicSpec("shop.order")], [])
            return change.kind == "unchanged"

    return asyncio.run(act())


def test_a_package_brings_a_broker(install: Install) -> None:
    """A scheme that is not built in is opened by the installed package that provides it, with the whole URL."""
    install("drum_broker", "[tidewire.transports]\ndrum = drum_broker:open_broker\n", BROKER)
    assert _has_a_topic("drum://skin?tight=1")
    with pytest.raises(TransportRefused):
        open_transport("drum://skin", create=False)
    assert [("drum://skin?tight=1", True), ("drum://skin", False)] == sys.modules["drum_broker"].asked


def test_a_package_brings_a_store(install: Install) -> None:
    """A store is found in the same way, in a group of its own."""
    install("row_store", "[tidewire.stores]\nrows = row_store:open_rows\n", STORE)
    clock, poll = SystemClock(), timedelta(seconds=1)
    open_store("rows://here", create=False, clock=clock, poll=poll)
    assert [("rows://here", False, clock, poll)] == sys.modules["row_store"].asked
    with pytest.raises(ConfigurationError, match="no installed package provides 'rows'"):
        open_transport("rows://here")


def test_a_scheme_that_nobody_provides_is_refused_with_those_that_are(install: Install) -> None:
    """The error says that no package provides the scheme, which schemes there are, and what is near."""
    install("drum_broker", "[tidewire.transports]\ndrum = drum_broker:open_broker\n", BROKER)
    with pytest.raises(ConfigurationError) as caught:
        open_transport("drumm://skin")
    assert "broker 'drumm://skin': no installed package provides 'drumm'; did you mean 'drum'?" == caught.value.message
    assert caught.value.hint.startswith("known schemes: amqp, amqps, drum, kafka, memory, postgresql, sqlite;")
    assert "tidewire.transports" in caught.value.hint


def test_a_broker_of_a_later_version_is_said_to_be_one() -> None:
    """A broker that tidewire is going to have is not taken for a slip of the pen; its password is masked."""
    with pytest.raises(ConfigurationError) as caught:
        open_transport("nats://anna:secret@broker:4222")
    assert "no installed package provides 'nats' (it is not in this version)" in caught.value.message
    assert "secret" not in str(caught.value)


def test_a_package_that_fails_on_import_is_named(install: Install) -> None:
    """The error names the package, what was loaded and why it could not be."""
    install("torn_broker", "[tidewire.transports]\ntorn = torn_broker:open_broker\n", "import no_such_client")
    with pytest.raises(ConfigurationError) as caught:
        open_transport("torn://skin")
    for word in ("torn-broker", "torn_broker:open_broker", "No module named 'no_such_client'"):
        assert word in caught.value.message
    assert "torn-broker" in caught.value.hint


def test_a_package_that_lacks_the_function_is_named(install: Install) -> None:
    """An entry point that names nothing is told like one that cannot be imported."""
    install("bare_broker", "[tidewire.transports]\nbare = bare_broker:open_broker\n", "")
    with pytest.raises(ConfigurationError, match="bare-broker"):
        open_transport("bare://skin")


def test_no_package_takes_a_built_in_scheme(install: Install, tmp_path: Path) -> None:
    """An installed package cannot stand in for a broker that is built in."""
    install("thief_broker", "[tidewire.transports]\nsqlite = thief_broker:open_broker\n", "raise SystemExit")
    assert _has_a_topic(f"sqlite:///{tmp_path}/broker.db")


@pytest.mark.parametrize("url", ["", "sqlite", "://x", "data/broker.db"])
def test_what_is_no_url_is_refused(url: str) -> None:
    """Text without a scheme is no broker, and the hint shows one."""
    with pytest.raises(ConfigurationError, match="is not a broker URL") as caught:
        open_transport(url)
    assert "sqlite:///data/broker.db" in caught.value.hint
