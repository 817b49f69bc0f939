"""What operators did, beside the log: rows that are only ever added."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tidewire.kit.sqllog.home import Connection
from tidewire.kit.sqllog.shared import Shared
from tidewire.model import Act

__all__ = ["LogLedger"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Act).decode


class LogLedger:
    """See `tidewire.protocols.Ledger`. The database itself refuses to change an act or to remove one."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def note(self, act: Act) -> None:
        """Add *act*; it is durable when this returns."""
        text = _encode(act).decode()

        def add(connection: Connection) -> None:
            connection.execute("INSERT INTO act (text) VALUES (?)", (text,))

        await self._shared.writer.submit(add)

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Return acts, oldest first."""

        def look(connection: Connection) -> list[tuple[int, Act]]:
            rows = connection.execute(  # the primary key
                "SELECT number, text FROM act WHERE number > ? ORDER BY number LIMIT ?", (after, limit)
            )
            return [(number, _decode(text)) for number, text in rows]

        return await self._shared.home.beside(look)
