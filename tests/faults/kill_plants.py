"""Faults planted on purpose into a world that is killed all the time, to see that its books do not balance then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidewire.stores.sqlite.inbox import SqliteInbox
from tidewire.stores.sqlite.outbox import SqliteBacklog


def _no_mark() -> None:
    """An effect leaves no inbox mark: what is handed out again takes effect again."""

    async def planted(self: Any, unit: Any, mark: Any, digest: bytes) -> None:
        return None

    SqliteInbox.mark = planted  # type: ignore[method-assign]


def _done_first() -> None:
    """The relay deletes its rows when it reads them, before the broker has them."""
    claim = SqliteBacklog.claim

    async def planted(self: Any, owner: str, **asked: Any) -> Any:
        rows = await claim(self, owner, **asked)
        if rows:
            await self.done(owner, [row.row for row in rows])
        return rows

    SqliteBacklog.claim = planted  # type: ignore[method-assign]


def _gap_commit() -> None:
    """A member on Kafka commits up to what it has handed out, not up to what is settled."""
    from tidewire.transports.kafka.progress import Progress

    saved = Progress.saved

    def planted(self: Any, *arguments: Any, **options: Any) -> tuple[int, str]:
        return self.high, saved(self, *arguments, **options)[1]

    Progress.saved = planted  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[], None]] = {
    "no-mark": _no_mark,
    "done-first": _done_first,
    "gap-commit": _gap_commit,
}
