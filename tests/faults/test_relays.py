"""Several relays on one outbox in PostgreSQL, in real processes: whatever becomes of them, nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

from relay_fleet import run_fleet


def test_four_relays_keep_the_order_of_keys_though_one_dies_and_one_stands_still(
    postgresql_url: str, tmp_path: Path
) -> None:
    """OB5: whatever becomes of two of four relays, every committed event reaches the broker, none that was rolled back
    does, and the first occurrences of each key are in the order of its commits."""
    books = asyncio.run(run_fleet(postgresql_url, tmp_path / "broker", events=6_000, keys=300))
    assert books.sent == books.first()
    assert 4 == len(books.relays()), "all of them had a share"
