"""Services run for real here: the real runtime on a real transport and store, both kinds, on short clocks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from runtime_world import Opened, World

from tidewire.stores.memory import open_memory_store
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.memory import open_memory_transport
from tidewire.transports.sqlite import open_sqlite_transport


@pytest.fixture(params=["memory", "sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """A function that opens the world of one kind."""

    @asynccontextmanager
    async def open_world() -> AsyncIterator[World]:
        if request.param == "memory":
            async with open_memory_transport() as transport, open_memory_store() as store:
                yield World(transport, store)
        else:
            async with (
                open_sqlite_transport(tmp_path / "broker.db") as transport,
                open_sqlite_store(tmp_path / "store.db") as store,
            ):
                yield World(transport, store)

    return open_world
