"""Middleware is tested in real services on the embedded broker and the SQLite store; it sees neither of them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.sqlite import open_sqlite_transport

_RUNTIME = Path(__file__).resolve().parent.parent / "runtime"
if str(_RUNTIME) not in sys.path:
    sys.path.insert(0, str(_RUNTIME))

from runtime_world import Opened, World  # noqa: E402 - found by the path above


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """A function that opens a world."""

    @asynccontextmanager
    async def open_world() -> AsyncIterator[World]:
        async with (
            open_sqlite_transport(tmp_path / "broker.db") as transport,
            open_sqlite_store(tmp_path / "store.db") as store,
        ):
            yield World(transport, store)

    return open_world
