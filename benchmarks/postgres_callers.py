"""An outbox row in transactions of the libraries that services use, beside the same transactions without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
import psycopg
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.measure import Figure, Sample, paired
from benchmarks.throughput import counted
from tidewire.model import Message
from tidewire.stores.postgres import PostgresStore

__all__ = ["callers_rows"]

_AT_ONCE = 16

Put = Callable[[Any], Awaitable[None]]
Transact = Callable[[int, Put], Awaitable[None]]
Opened = Callable[[str], AbstractAsyncContextManager[Sequence[Transact]]]


class _Base(DeclarativeBase):
    pass


class _Seen(_Base):
    __tablename__ = "seen"
    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]


@asynccontextmanager
async def _asyncpg(url: str) -> AsyncIterator[Sequence[Transact]]:
    async def transact(connection: Any, number: int, put: Put) -> None:
        async with connection.transaction():
            await connection.execute("INSERT INTO seen VALUES ($1, 1)", str(number))
            await put(connection)

    connections = [await asyncpg.connect(url) for _ in range(_AT_ONCE)]
    try:
        yield [partial(transact, connection) for connection in connections]
    finally:
        for connection in connections:
            await connection.close()


@asynccontextmanager
async def _psycopg(url: str) -> AsyncIterator[Sequence[Transact]]:
    async def transact(connection: psycopg.AsyncConnection[Any], number: int, put: Put) -> None:
        async with connection.transaction():
            await connection.execute("INSERT INTO seen VALUES (%s, 1)", (str(number),))
            await put(connection)

    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(await psycopg.AsyncConnection.connect(url)) for _ in range(_AT_ONCE)
        ]
        yield [partial(transact, connection) for connection in connections]


@asynccontextmanager
async def _sqlalchemy(url: str) -> AsyncIterator[Sequence[Transact]]:
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url), pool_size=_AT_ONCE
    )
    sessions = async_sessionmaker(engine)

    async def transact(number: int, put: Put) -> None:
        async with sessions.begin() as session:
            session.add(_Seen(id=str(number), number=1))
            await put(session)

    try:
        yield [transact] * _AT_ONCE
    finally:
        await engine.dispose()


_LIBRARIES: Mapping[str, Opened] = {
    "asyncpg's": _asyncpg,
    "psycopg's": _psycopg,
    "SQLAlchemy's": _sqlalchemy,
}


def callers_rows(
    url: str,
    opened: Callable[[str], AbstractAsyncContextManager[PostgresStore]],
    messages: Sequence[Message],
    *,
    total: int,
    rounds: int,
) -> list[Figure]:
    """Measure *total* transactions with *messages* beside as many without; *opened* gives an empty store at *url*."""

    async def run(library: Opened, rows: Sequence[Message]) -> Sample:
        async with opened(url) as store, library(url) as transacts:
            return await counted(total, lambda: _all(store, transacts, total, rows))

    def sample(library: Opened, rows: Sequence[Message]) -> Sample:
        return asyncio.run(run(library, rows))

    return [
        paired(
            f"PostgreSQL, {name} transaction with 1 outbox row, beside one without",
            ours=partial(sample, library, messages),
            native=partial(sample, library, ()),
            rounds=rounds,
            target=0.7,
        )
        for name, library in _LIBRARIES.items()
    ]


async def _all(store: PostgresStore, transacts: Sequence[Transact], total: int, messages: Sequence[Message]) -> None:
    async def put(tx: Any) -> None:
        if messages:
            unit = store.adopt_tx(tx)
            assert unit is not None, "its library is known"
            await store.outbox.put(unit, messages)

    async def some(start: int) -> None:
        for number in range(start, total, len(transacts)):
            await transacts[start](number, put)

    await asyncio.gather(*(some(start) for start in range(len(transacts))))
