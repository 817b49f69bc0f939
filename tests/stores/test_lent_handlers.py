"""Handlers in transactions of the user's own pool: what they find, what they may, and what holds when they fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tidewire import ConfigurationError, Context, Retry, Service, SyncContext, event, running, transaction
from tidewire.config import open_store, open_store_on
from tidewire.errors import TransactionControl
from tidewire.kit.looks import SeesWriters
from tidewire.model import DeadChannel, Topic, TopicSpec
from tidewire.runtime.parts import Parts
from tidewire.stores.sqlite import SqliteTx
from tidewire.transports.memory import open_memory_transport


@event("mill.sack.filled", key="sack")
class SackFilled:
    sack: str


@event("mill.flour.sold", key="sack")
class FlourSold:
    sack: str


class Base(DeclarativeBase):
    pass


class Flour(Base):
    __tablename__ = "flour"
    sack: Mapped[str] = mapped_column(primary_key=True)


ONCE = Retry(attempts=1)


def sync_engine(url: str) -> Engine:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    Base.metadata.create_all(engine)
    return engine


def async_engine(url: str) -> AsyncEngine:
    driver = "postgresql+asyncpg:" if url.startswith("postgresql") else "sqlite+aiosqlite:"
    return create_async_engine(url.replace("postgresql:", driver).replace("sqlite:", driver))


async def made(url: str) -> None:
    async with open_store(url, provision=True):
        pass
    engine = sync_engine(url)
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def mill_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store with a table of the user's, in either database."""
    url = f"sqlite:///{tmp_path / 'mill.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    asyncio.run(made(url))
    return url


async def sacks(engine: AsyncEngine) -> list[str]:
    async with AsyncSession(engine) as session:
        return [*(await session.scalars(text("SELECT sack FROM flour ORDER BY sack"))).all()]


class Ears:
    """Counts the events of the service that are settled, and says when it was enough."""

    def __init__(self, wanted: int) -> None:
        self._left = wanted
        self.done = asyncio.Event()

    def record(self, facts: Any) -> None:
        self._left -= sum(fact.kind == "settled" for fact in facts)  # acked, or its dead letter is stored
        if self._left <= 0:
            self.done.set()


async def handled(service: Service, pool: Any, *events: SackFilled) -> tuple[list[str], list[str]]:
    """Let *service* handle *events* on *pool*; return the keys of what it sold, and why others were given up."""
    ears = Ears(len(events))
    async with open_memory_transport() as broker:
        await broker.provision([TopicSpec("mill.flour", lanes=1)], [])
        async with (
            open_store_on(pool) as store,
            running(service, transport=broker, store=store, parts=Parts(observer=ears)) as app,
        ):
            await app.publisher.publish_all(events)
            await asyncio.wait_for(ears.done.wait(), 20)
        sold = await broker.browse(Topic("mill.flour"), limit=100)
        dead = await broker.browse(DeadChannel("mill.sack", service.name), limit=100)
    return sorted(str(one.message.key) for one in sold), [one.message.headers["dl-detail"] for one in dead]


def test_rows_mark_and_events_are_one_transaction_of_the_session(mill_url: str) -> None:
    """`Context[AsyncSession]`: what is added is stored once, with the mark; a repeat changes nothing."""
    mill = Service("mill")

    @mill.on(SackFilled, retry=ONCE)
    async def grind(filled: SackFilled, context: Context[AsyncSession]) -> FlourSold:
        context.tx.add(Flour(sack=filled.sack))
        if filled.sack == "torn":
            await context.tx.flush()
            raise ValueError("the sack is torn")
        return FlourSold(filled.sack)

    async def scenario() -> None:
        engine = async_engine(mill_url)
        sold, dead = await handled(mill, engine, SackFilled("a"), SackFilled("torn"), SackFilled("b"))
        assert (["a", "b"], ["a", "b"]) == (sold, await sacks(engine))
        assert ["the sack is torn" in why for why in dead] == [True]
        await engine.dispose()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("word", "ends"),
    [
        ("COMMIT", lambda session: session.commit()),
        ("ROLLBACK", lambda session: session.rollback()),
        ("COMMIT", lambda session: session.execute(text("/* sly */ commit"))),
        ("ROLLBACK", lambda session: session.close()),
    ],
)
def test_a_handler_that_ends_the_transaction_is_caught(
    mill_url: str, word: str, ends: Callable[[AsyncSession], Any]
) -> None:
    """Whichever way, and even if it swallows the refusal: nothing of the unit is kept, and it is a dead letter."""
    mill = Service("mill")

    @mill.on(SackFilled, retry=ONCE)
    async def grind(filled: SackFilled, context: Context[AsyncSession]) -> FlourSold:
        await context.tx.execute(text("INSERT INTO flour VALUES (:sack)"), {"sack": filled.sack})
        with contextlib.suppress(TransactionControl):
            await ends(context.tx)
        return FlourSold(filled.sack)

    async def scenario() -> None:
        engine = async_engine(mill_url)
        sold, dead = await handled(mill, engine, SackFilled("a"))
        assert ([], []) == (sold, await sacks(engine))
        assert [True] == [f"TransactionControl: {word}" in why or f"({word})" in why for why in dead], dead
        await engine.dispose()

    asyncio.run(scenario())


def test_a_savepoint_is_the_handlers_own(mill_url: str) -> None:
    """`begin_nested` undoes a part, a caught IntegrityError included, and the unit goes on."""
    mill = Service("mill")

    @mill.on(SackFilled, retry=ONCE)
    async def grind(filled: SackFilled, context: Context[AsyncSession]) -> FlourSold:
        context.tx.add(Flour(sack=filled.sack))
        await context.tx.flush()
        try:
            async with context.tx.begin_nested():
                await context.tx.execute(text("INSERT INTO flour VALUES (:sack)"), {"sack": filled.sack})
        except IntegrityError:
            context.tx.add(Flour(sack=f"{filled.sack} again"))
        return FlourSold(filled.sack)

    async def scenario() -> None:
        engine = async_engine(mill_url)
        sold, dead = await handled(mill, async_sessionmaker(engine), SackFilled("a"))
        assert (["a"], [], ["a", "a again"]) == (sold, dead, await sacks(engine))
        await engine.dispose()

    asyncio.run(scenario())


@pytest.mark.parametrize("goes_on", [False, True], ids=["returns", "goes on"])
@pytest.mark.parametrize("awaited", [True, False], ids=["asyncpg", "psycopg"])
def test_an_error_that_was_caught_is_named(postgresql_url: str, awaited: bool, goes_on: bool) -> None:
    """PostgreSQL keeps nothing after an error, and says of each further statement only that the transaction is aborted:
    what is told is the error that the handler caught, whether it returns then or writes more."""
    asyncio.run(made(postgresql_url))
    mill = Service("mill")
    insert = text("INSERT INTO flour VALUES (:sack)")

    async def grind(filled: SackFilled, context: Context[AsyncSession]) -> FlourSold:
        for _ in range(2):
            with contextlib.suppress(IntegrityError):
                await context.tx.execute(insert, {"sack": filled.sack})
        if goes_on:
            await context.tx.execute(insert, {"sack": "another"})
        return FlourSold(filled.sack)

    def crush(filled: SackFilled, context: SyncContext[Session]) -> FlourSold:
        for _ in range(2):
            with contextlib.suppress(IntegrityError):
                context.tx.execute(insert, {"sack": filled.sack})
        if goes_on:
            context.tx.execute(insert, {"sack": "another"})
        return FlourSold(filled.sack)

    mill.on(SackFilled, retry=ONCE)(grind if awaited else crush)

    async def scenario() -> None:
        engine = async_engine(postgresql_url)
        sold, (why,) = await handled(mill, engine if awaited else sync_engine(postgresql_url), SackFilled("a"))
        assert ([], []) == (sold, await sacks(engine))
        name = "UniqueViolationError" if awaited else "UniqueViolation"
        assert f"TransactionAborted: the handler caught {name} (23505) and went on" in why
        await engine.dispose()

    asyncio.run(scenario())


def test_a_conflict_that_was_caught_runs_again(postgresql_url: str) -> None:
    """A serialization failure is nobody's failure, also where the handler has caught it: the event runs again, and is
    no dead letter although it has one attempt."""
    asyncio.run(made(postgresql_url))
    mill = Service("mill")
    runs: list[str] = []

    @mill.on(SackFilled, retry=ONCE)
    async def grind(filled: SackFilled, context: Context[AsyncSession]) -> FlourSold:
        runs.append(filled.sack)
        if len(runs) == 1:
            with contextlib.suppress(DBAPIError):
                await context.tx.execute(text("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$"))
        else:
            context.tx.add(Flour(sack=filled.sack))
        return FlourSold(filled.sack)

    async def scenario() -> None:
        engine = async_engine(postgresql_url)
        sold, dead = await handled(mill, engine, SackFilled("a"))
        assert (["a"], [], ["a"], 2) == (sold, dead, await sacks(engine), len(runs))
        await engine.dispose()

    asyncio.run(scenario())


def test_a_pool_without_a_free_connection_says_what_to_set(mill_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that gets no connection from the application's pool counts as nobody's failure: the pause says which
    pool it is and what to raise, and the event is handled once there is one."""
    mill = Service("mill")

    @mill.on(SackFilled, retry=ONCE)
    async def grind(filled: SackFilled, context: Context[AsyncSession]) -> FlourSold:
        context.tx.add(Flour(sack=filled.sack))
        await context.tx.flush()
        return FlourSold(filled.sack)

    def paused() -> list[str]:
        return [vars(one)["detail"] for one in caplog.records if one.message == "tidewire.consumer.paused"]

    async def scenario() -> None:
        engine = create_async_engine(async_engine(mill_url).url, pool_size=1, max_overflow=0, pool_timeout=0.2)
        ears = Ears(1)
        async with (
            open_memory_transport() as broker,
            open_store_on(engine) as store,
            running(mill, transport=broker, store=store, parts=Parts(observer=ears)) as app,
            asyncio.timeout(30),
        ):
            async with engine.connect():
                await app.publisher.publish(SackFilled("a"))
                while not paused():  # noqa: ASYNC110 - a log record sets no event
                    await asyncio.sleep(0.01)
            await ears.done.wait()
        assert ["a"] == await sacks(engine)
        await engine.dispose()

    asyncio.run(scenario())
    (first, *_) = paused()
    assert "QueuePool limit of size 1 overflow 0 reached" in first
    assert "raise pool_size or max_overflow" in first


def test_a_def_handler_has_a_session_in_its_thread(mill_url: str) -> None:
    """`SyncContext[Session]` on an `Engine`: the same promises for synchronous code."""
    mill = Service("mill")

    @mill.on(SackFilled, retry=ONCE)
    def grind(filled: SackFilled, context: SyncContext[Session]) -> FlourSold:
        context.tx.add(Flour(sack=filled.sack))
        if filled.sack == "sly":
            context.tx.commit()
        return FlourSold(filled.sack)

    async def scenario() -> None:
        engine, looking = sync_engine(mill_url), async_engine(mill_url)
        sold, dead = await handled(mill, engine, *[SackFilled(name) for name in ("a", "sly", "b", "c")])
        assert (["a", "b", "c"], ["a", "b", "c"]) == (sold, await sacks(looking))
        assert [True] == ["TransactionControl" in why for why in dead]
        engine.dispose()
        await looking.dispose()

    asyncio.run(scenario())


def test_a_transaction_outside_of_handlers_is_a_session_too(mill_url: str) -> None:
    """`transaction(store)` gives what the pool lends, and commits what was only added."""

    async def scenario() -> None:
        engine = async_engine(mill_url)
        async with open_store_on(engine) as store:
            assert mill_url.startswith("postgresql") == isinstance(store, SeesWriters), "the alarm is the inner store's"
            async with transaction(store) as session:
                session.add(Flour(sack="a"))
        assert ["a"] == await sacks(engine)
        await engine.dispose()

    asyncio.run(scenario())


# --- refused at the start -------------------------------------------------------------------------------------


async def start(service: Service, store: Any) -> None:
    async with open_memory_transport() as broker, running(service, transport=broker, store=store):
        pass


def test_another_context_than_the_store_gives_is_refused_at_the_start(tmp_path: Path) -> None:
    """All of them at once, each with what it wants and what there is."""
    url = f"sqlite:///{tmp_path / 'mill.db'}"
    wants_session, wants_asyncpg, plain = Service("mill"), Service("mill"), Service("mill")

    @wants_session.on(SackFilled)
    async def grind(filled: SackFilled, context: Context[AsyncSession]) -> None: ...

    @wants_asyncpg.on(SackFilled)
    async def weigh(filled: SackFilled, context: Context[asyncpg.Connection]) -> None: ...

    @plain.on(SackFilled)
    def sweep(filled: SackFilled, context: SyncContext[Any]) -> None:
        context.tx.execute("SELECT 1")

    @plain.on(SackFilled, name="count")
    async def count(filled: SackFilled, context: Context[SqliteTx]) -> None: ...

    async def scenario() -> None:
        async with open_store(url) as store:
            with pytest.raises(ConfigurationError, match=r"grind wants .*AsyncSession, and its store gives SqliteTx"):
                await start(wants_session, store)
            await start(plain, store)
        engine = async_engine(url)
        async with open_store_on(engine) as store:
            await start(wants_session, store)
            with pytest.raises(ConfigurationError, match=r"weigh wants .*Connection, .* gives AsyncSession"):
                await start(wants_asyncpg, store)
            with pytest.raises(ConfigurationError) as caught:
                await start(plain, store)
            assert "mill.sweep is a `def` handler" in caught.value.message
            assert "mill.count wants a context.tx of SqliteTx" in caught.value.message
        await engine.dispose()

    asyncio.run(scenario())


def test_a_pool_that_leads_elsewhere_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    """Effect and mark in two databases are refused before the first event."""

    async def scenario() -> None:
        engine = async_engine(f"sqlite:///{tmp_path / 'other.db'}")
        with pytest.raises(ConfigurationError, match=r"the pool is to .*other\.db, the store is .*mill\.db"):
            async with open_store_on(engine, url=f"sqlite:///{tmp_path / 'mill.db'}"):
                pass
        with pytest.raises(ConfigurationError, match="cannot lend"):
            async with open_store_on(object()):
                pass
        await engine.dispose()

    asyncio.run(scenario())
