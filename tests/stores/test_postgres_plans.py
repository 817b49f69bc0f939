"""Plans of the PostgreSQL store's own statements: made while its tables are empty, they must fit full ones."""

from __future__ import annotations

import asyncio
import time

import psycopg

from tidewire.chance import UUID7Ids
from tidewire.model import Mark
from tidewire.stores.postgres import open_postgres_store

_LOOKS, _PATIENCE = 12, 30.0


def _scans(url: str, at_least: int) -> tuple[int, int]:
    """Return how often ``tidewire_mark`` was read from end to end and how often by an index, once all connections of
    the store are gone (they say so when they end) and the second is *at_least* that."""
    deadline = time.monotonic() + _PATIENCE
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            alive, seq, index = connection.execute(
                "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'tidewire'), seq_scan, idx_scan "
                "FROM pg_stat_user_tables WHERE relname = 'tidewire_mark'"
            ).fetchone() or (1, 0, 0)
            if not alive and index >= at_least:
                return seq, index
            assert time.monotonic() < deadline, f"{alive} connections, {index} of {at_least} index scans"
            time.sleep(0.05)


def test_marks_are_found_by_their_index_from_the_first_on(postgresql_url: str) -> None:
    """Looking marks up, and pruning them, never reads the table from end to end: a plan stays with its connection."""
    ids = UUID7Ids()
    marks = [Mark("bench", "handle", 0, "bench", ids.event_id()) for _ in range(64)]

    async def scenario() -> None:
        async with open_postgres_store(postgresql_url) as store:
            await store.inbox.scope_of(marks[0])
            for _ in range(_LOOKS):
                assert [None] * 64 == await store.inbox.known(marks)
                assert 0 == await store.inbox.prune(1, 1_000)

    async def provision() -> None:
        async with open_postgres_store(postgresql_url, provision=True):
            pass

    asyncio.run(provision())
    before, _ = _scans(postgresql_url, 0)
    asyncio.run(scenario())
    after, by_index = _scans(postgresql_url, 2 * _LOOKS)
    assert before == after
    assert by_index >= 2 * _LOOKS
