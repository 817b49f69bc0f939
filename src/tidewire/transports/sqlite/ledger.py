"""What operators did, in the broker's file: rows that are only ever added."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from tidewire.model import Act
from tidewire.transports.sqlite.shared import Shared

__all__ = ["SqliteLedger"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Act).decode


class SqliteLedger:
    """See `tidewire.protocols.Ledger`. The file itself refuses to change an act or to remove one."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def note(self, act: Act) -> None:
        """Add *act*; it is on disk when this returns."""
        text = _encode(act).decode()

        def add(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO act (text) VALUES (?)", (text,))

        await self._shared.writer.submit(add)

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Return acts, oldest first."""

        def look(connection: sqlite3.Connection) -> list[tuple[int, Act]]:
            rows = connection.execute(  # the primary key
                "SELECT number, text FROM act WHERE number > ? ORDER BY number LIMIT ?", (after, limit)
            )
            return [(number, _decode(text)) for number, text in rows]

        return await self._shared.aside.run(look)
