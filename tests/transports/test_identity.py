"""Which broker it is, whatever the URL: by this a relay knows that another one publishes elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tidewire.config import open_transport
from tidewire.kit.looks import Identified


async def identity_of(url: str) -> str:
    """Return what the broker at *url* says."""
    async with open_transport(url) as transport:
        broker: object = transport
        assert isinstance(broker, Identified)
        return await broker.identity()


def test_a_file_says_nothing(tmp_path: Path) -> None:
    """What was brought back from a copy is the same broker in another file: after a power loss a service goes on."""
    assert "" == asyncio.run(identity_of(f"sqlite:///{tmp_path / 'broker.db'}"))


def test_tables_are_known_by_any_url(postgresql_url: str) -> None:
    """Settings of the URL change nothing; tables of another prefix are another broker."""
    here = asyncio.run(identity_of(postgresql_url))
    assert here.startswith("postgresql:")
    assert here == asyncio.run(identity_of(f"{postgresql_url}?connect_timeout=5"))
    assert here != asyncio.run(identity_of(f"{postgresql_url}?prefix=tw_"))


@pytest.mark.parametrize("kind", ["kafka", "rabbitmq"])
def test_a_cluster_says_its_name(kind: str, request: pytest.FixtureRequest) -> None:
    """Each that opens it hears the same name, and no empty one."""
    url = request.getfixturevalue(f"{kind}_url")
    first, second = asyncio.run(identity_of(url)), asyncio.run(identity_of(url))
    assert first == second
    assert f"{kind}:" == first[: len(kind) + 1]
    assert len(first) > len(kind) + 1
