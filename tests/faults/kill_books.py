"""The books of a world that was killed all the time, read from its databases alone."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def problems(directory: Path, acked: set[str]) -> list[str]:
    """Return what does not add up; at best nothing."""
    return [problem for check in (_books, _order, _rest, _whole) for problem in check(directory, acked)]


def figures(directory: Path, acked: set[str]) -> Counter[str]:
    """Return how much happened."""
    orders = rows_of(directory, "shop", "SELECT key || '-' || n FROM orders")
    effects = rows_of(directory, "billing", "SELECT attempt FROM effect")
    return Counter(
        {
            "orders": len(orders),
            "orders acknowledged": len(acked),
            "stored but not acknowledged": len(orders) - len(acked),
            "effects at a later attempt": sum(attempt > 1 for (attempt,) in effects),
        }
    )


def _books(directory: Path, acked: set[str]) -> Iterator[str]:
    """Acknowledged ⊆ ordered = paid = audited, each exactly once."""
    ordered = [row[0] for row in rows_of(directory, "shop", "SELECT key || '-' || n FROM orders")]
    yield from _named("acknowledged, but not there", acked - set(ordered))
    cause = set(ordered)
    for service in ("billing", "audit"):
        found = Counter(row[0] for row in rows_of(directory, service, "SELECT key || '-' || n FROM effect"))
        yield from _named(f"{service}: lost", cause - found.keys())
        yield from _named(f"{service}: without a cause", found.keys() - cause)
        yield from _named(f"{service}: more than once", {one for one, times in found.items() if times > 1})
        marks = rows_of(directory, service, "SELECT count(*) FROM tidewire_mark")[0][0]
        if marks != len(found):
            yield f"{service}: {marks} inbox marks for {len(found)} effects"


def _order(directory: Path, acked: set[str]) -> Iterator[str]:
    """The effects of a key come in the order of its events."""
    for service in ("billing", "audit"):
        last: dict[str, int] = {}
        for key, n in rows_of(directory, service, "SELECT key, n FROM effect ORDER BY row"):
            if n < last.get(key, 0):
                yield f"{service}: {key}-{n} came after {key}-{last[key]}"
            last[key] = max(n, last.get(key, 0))


def _rest(directory: Path, acked: set[str]) -> Iterator[str]:
    """Nothing is left over: no outbox row, no held key, no start that has not ended, no dead letter."""
    for service in ("shop", "billing", "audit"):
        for table in ("tidewire_outbox", "tidewire_outbox_refused", "tidewire_held", "tidewire_attempt"):
            left = rows_of(directory, service, f"SELECT count(*) FROM {table}")[0][0]
            if left:
                yield f"{service}: {left} rows left in {table}"
    if not (directory / "broker.db").exists():
        return  # who healed the world has seen the broker empty
    for table in ("dead", "inbox", "delayed"):
        left = rows_of(directory, "broker", f"SELECT count(*) FROM {table}")[0][0]
        if left:
            yield f"broker: {left} rows left in {table}"


def _whole(directory: Path, acked: set[str]) -> Iterator[str]:
    """No file is damaged."""
    for path in sorted(directory.glob("*.db")):
        name = path.stem
        found = rows_of(directory, name, "PRAGMA integrity_check")
        if found != [("ok",)]:
            yield f"{name}: {found[:3]}"


def _named(what: str, ids: set[str]) -> Iterator[str]:
    if ids:
        yield f"{what}: {len(ids)}, such as {', '.join(sorted(ids)[:3])}"


def rows_of(directory: Path, name: str, sql: str) -> Sequence[Any]:
    """Return what one of the world's databases answers."""
    connection = sqlite3.connect(directory / f"{name}.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()
