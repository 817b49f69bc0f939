"""The suite bites at a store in PostgreSQL, too: one whose SQL is broken on purpose is caught."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_site import postgres_site

from tidewire.errors import AlreadyMarked
from tidewire.testing.stores import Site, StoreConformance

_numbers = itertools.count(1)


def guards_nothing(store: Any) -> None:
    """The lane's epoch is not looked at."""
    store._core.guard_sql = "SELECT $1::text, $2::text, $3::bigint"


def marks_without_a_conflict(store: Any) -> None:
    """A mark that exists is taken for one that was made."""
    store.inbox._mark += " ON CONFLICT DO NOTHING"


def forgets_the_event_in_a_mark(store: Any) -> None:
    """All events of a handler have one mark."""
    store.inbox._mark = store.inbox._mark.replace("$3::bytea,", "substr($3::bytea, 1, 0),")


def prunes_the_young(store: Any) -> None:
    """Whatever their age, as many marks as asked for go."""
    store.inbox._prune = store.inbox._prune.replace("at < $1::bigint", "at > $1::bigint - $1::bigint")


def adopts_backwards(store: Any) -> None:
    """A lower epoch takes a lane over."""
    store.lanes._adopt = store.lanes._adopt.replace("WHERE excluded.epoch >= l.epoch ", "")


def finishes_for_anybody(store: Any) -> None:
    """A recurring run is finished by who has lost it."""
    store.timetable._advance = store.timetable._advance.replace("owner = $2::text AND", "$2::text <> '' AND")


def loses_its_place(store: Any) -> None:
    """A held event that is noted again goes behind the others of its key."""
    store.held._put = store.held._put.replace("state = excluded.state", "sequence = DEFAULT, state = excluded.state")


CAUGHT: list[tuple[Callable[[Any], None], str]] = [
    (guards_nothing, "test_fenced_unit_leaves_nothing"),
    (guards_nothing, "test_fence_reaches_other_connections"),
    (marks_without_a_conflict, "test_event_is_marked_once"),
    (marks_without_a_conflict, "test_two_connections_one_effect"),
    (forgets_the_event_in_a_mark, "test_no_two_ids_are_one"),
    (prunes_the_young, "test_pruning_takes_the_old_ones_in_bounded_batches"),
    (adopts_backwards, "test_epochs_never_go_back"),
    (finishes_for_anybody, "test_who_lost_the_lease_cannot_finish"),
    (loses_its_place, "test_held_rows_keep_their_place"),
]


class Suite(StoreConformance):
    """The suite at a store that is given at run time. Not collected: its name does not begin with Test."""

    def __init__(self, site: Site) -> None:
        self.site = lambda directory: site  # type: ignore[method-assign]


@pytest.fixture
def sound(postgresql_server: str) -> Iterator[Site]:
    """A store in a schema of the test's own."""
    schema = f"planted_{next(_numbers)}"
    yield postgres_site(postgresql_server, schema)
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())


@pytest.mark.parametrize(("plant", "case"), CAUGHT)
def test_broken_store_in_postgresql_is_caught(
    plant: Callable[[Any], None], case: str, sound: Site, tmp_path: Path
) -> None:
    """A store with this defect fails the case that is there to find it."""

    @asynccontextmanager
    async def opened(clock: Any) -> AsyncGenerator[Any]:
        async with sound.open(clock) as store:
            plant(store)
            yield store

    with pytest.raises((AssertionError, AlreadyMarked)):
        getattr(Suite(replace(sound, open=opened)), case)(tmp_path)
