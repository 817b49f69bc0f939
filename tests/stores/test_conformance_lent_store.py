"""A store whose units run on the user's own pool passes the conformance suite of stores."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import SkipTest

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from tidewire.config import open_store_on
from tidewire.kit.threads import to_the_end
from tidewire.protocols import Clock
from tidewire.testing.stores import Site, StoreConformance
from tidewire.testing.stores.sections import (
    b_marks,
    c_outbox,
    d_backlog,
    e_records,
    f_lanes,
    g_timetable,
    h_processes,
    i_model,
)

INSERT = text("INSERT INTO named VALUES (:name)")
READ = text("SELECT name FROM named")
TABLE = text("CREATE TABLE IF NOT EXISTS named (name TEXT PRIMARY KEY)")


_schemas = itertools.count(1)


class AsyncRows:
    """The user's rows through an `AsyncSession`."""

    async def prepare(self, store: Any) -> None:
        unit = store.unit()
        await unit.tx.execute(TABLE)
        await (await unit.seal())

    async def insert(self, unit: Any, name: str) -> None:
        await unit.tx.execute(INSERT, {"name": name})

    def insert_now(self, unit: Any, name: str) -> None:
        raise SkipTest("an AsyncEngine lends to `async def` handlers only")

    async def names(self, store: Any) -> Sequence[str]:
        unit = store.unit()
        rows = (await unit.tx.execute(READ)).all()
        await unit.rollback()
        return [row[0] for row in rows]


class SyncRows:
    """The user's rows through a `Session`."""

    async def prepare(self, store: Any) -> None:
        unit = store.unit()
        unit.tx.execute(TABLE)
        await (await unit.seal())

    async def insert(self, unit: Any, name: str) -> None:
        thread = ThreadPoolExecutor(1)  # as the handlers of a service have threads of their own
        try:
            await to_the_end(lambda: self.insert_now(unit, name), executor=thread)
        finally:
            thread.shutdown(wait=False)

    def insert_now(self, unit: Any, name: str) -> None:
        unit.sync_tx.execute(INSERT, {"name": name})

    async def names(self, store: Any) -> Sequence[str]:
        unit = store.unit()
        rows = unit.tx.execute(READ).all()
        await unit.rollback()
        return [row[0] for row in rows]


@asynccontextmanager
async def on_async_engine(path: str, clock: Clock) -> AsyncGenerator[Any]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    try:
        async with open_store_on(engine, clock=clock) as store:
            yield store
    finally:
        await engine.dispose()


@asynccontextmanager
async def on_engine(path: str, clock: Clock) -> AsyncGenerator[Any]:
    engine = create_engine(f"sqlite:///{path}")
    try:
        async with open_store_on(engine, clock=clock) as store:
            yield store
    finally:
        engine.dispose()


def async_site(path: str) -> Site:
    return Site(
        open=lambda clock: on_async_engine(path, clock),
        rows=AsyncRows(),
        shared=True,
        durable=True,
    )


def sync_site(path: str) -> Site:
    return Site(
        open=lambda clock: on_engine(path, clock),
        rows=SyncRows(),
        shared=True,
        durable=True,
    )


@asynccontextmanager
async def on_async_postgresql(url: str, schema: str, clock: Clock) -> AsyncGenerator[Any]:
    engine = create_async_engine(
        url.replace("postgresql:", "postgresql+asyncpg:"), connect_args={"server_settings": {"search_path": schema}}
    )
    try:
        async with open_store_on(engine, url=f"{url}?schema={schema}", clock=clock, provision=True) as store:
            yield store
    finally:
        await engine.dispose()


@asynccontextmanager
async def on_postgresql(url: str, schema: str, clock: Clock) -> AsyncGenerator[Any]:
    engine = create_engine(
        url.replace("postgresql:", "postgresql+psycopg:"), connect_args={"options": f"-csearch_path={schema}"}
    )
    try:
        async with open_store_on(engine, url=f"{url}?schema={schema}", clock=clock, provision=True) as store:
            yield store
    finally:
        engine.dispose()


def async_postgresql_site(url: str, schema: str) -> Site:
    return Site(
        open=lambda clock: on_async_postgresql(url, schema, clock),
        rows=AsyncRows(),
        own_time=True,
        shared=True,
        durable=True,
    )


def sync_postgresql_site(url: str, schema: str) -> Site:
    return Site(
        open=lambda clock: on_postgresql(url, schema, clock),
        rows=SyncRows(),
        own_time=True,
        shared=True,
        durable=True,
    )


@pytest.fixture
def schema(postgresql_server: str) -> Iterator[tuple[str, str]]:
    name = f"lent_{next(_schemas)}"
    yield postgresql_server, name
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE".encode())


# The pool lends to units; what never runs in one is the inner store's, and that has a suite of its own.
def _without(*sections: ModuleType) -> type[StoreConformance]:
    left_out = {name: None for section in sections for name in vars(section) if name.startswith("test_")}
    return type("UnitsConformance", (StoreConformance,), left_out)


_INNER = (d_backlog, e_records, h_processes)
UnitsConformance = _without(*_INNER)
BriefConformance = _without(*_INNER, b_marks, c_outbox, f_lanes, g_timetable, i_model)


class TestSqliteStoreOnAnAsyncEngine(BriefConformance):
    """Units are `AsyncSession`s of SQLAlchemy over aiosqlite."""

    def site(self, directory: Path) -> Site:
        return async_site(str(directory / "store.db"))


class TestSqliteStoreOnAnEngine(UnitsConformance):
    """Units are `Session`s of SQLAlchemy, for handlers in threads."""

    def site(self, directory: Path) -> Site:
        return sync_site(str(directory / "store.db"))


class TestPostgresStoreOnAnAsyncEngine(UnitsConformance):
    """Units are `AsyncSession`s over asyncpg, the rest of the store runs over psycopg."""

    @pytest.fixture(autouse=True)
    def _own_schema(self, schema: tuple[str, str]) -> None:
        self._place = schema

    def site(self, directory: Path) -> Site:
        return async_postgresql_site(*self._place)


class TestPostgresStoreOnAnEngine(BriefConformance):
    """Units are `Session`s over psycopg, for handlers in threads."""

    @pytest.fixture(autouse=True)
    def _own_schema(self, schema: tuple[str, str]) -> None:
        self._place = schema

    def site(self, directory: Path) -> Site:
        return sync_postgresql_site(*self._place)
