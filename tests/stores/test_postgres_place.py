"""Where the PostgreSQL store lies: its tables and who makes them, its URL, who may do what, and who refuses us."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from tidewire import transaction
from tidewire.errors import ConfigurationError, StoreRefused, StoreUnavailable
from tidewire.kit.postgres.place import postgres_place
from tidewire.model import Mark
from tidewire.stores.postgres import open_postgres_store


def test_tables_must_be_there(postgresql_url: str) -> None:
    """A store without tables is refused with the command that makes them; several that make them at once do it once."""

    async def scenario() -> None:
        with pytest.raises(StoreRefused, match="has no tables") as refused:
            async with open_postgres_store(postgresql_url):
                pass
        assert "tidewire store upgrade" in refused.value.hint

        async def start() -> None:
            async with open_postgres_store(f"{postgresql_url}?schema=shop", provision=True) as store:
                assert 0 == await store.inbox.run_of("g")

        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(start())
        with psycopg.connect(postgresql_url, autocommit=True) as connection:
            assert [(1,)] == connection.execute("SELECT version FROM shop.tidewire_schema").fetchall()
            connection.execute("UPDATE shop.tidewire_schema SET version = 99")
        with pytest.raises(StoreRefused, match="version 99"):
            async with open_postgres_store(f"{postgresql_url}?schema=shop", provision=True):
                pass

    asyncio.run(scenario())


def test_a_url_that_cannot_be_read_is_no_outage(postgresql_server: str) -> None:
    """A parameter that libpq does not know is refused at once, by its name, and nobody waits for a server."""

    async def scenario() -> None:
        with pytest.raises(StoreRefused, match='invalid URI query parameter: "shema"'):
            async with open_postgres_store(f"{postgresql_server}?shema=x"):
                raise AssertionError("it was opened")

    asyncio.run(scenario())


def test_who_refuses_us_is_told(postgresql_server: str) -> None:
    """A wrong password and a database that is not there need a person; nobody who listens needs time."""

    async def scenario() -> None:
        password = postgresql_server.split(":")[2].split("@")[0]
        wrong = postgresql_server.replace(f":{password}@", ":no@")
        for url in (wrong, postgresql_server.rpartition("/")[0] + "/nowhere"):
            with pytest.raises(StoreRefused) as refused:
                async with open_postgres_store(url):
                    pass
            assert ":no@" not in str(refused.value)
            assert password not in str(refused.value)
        with pytest.raises(StoreUnavailable):
            async with open_postgres_store("postgresql://me@127.0.0.1:1/shop"):
                pass

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "query", ["schema=My+Shop", "schema=a;drop", "prefix=a.b", "connections=0", "connections=many", "schema", "=&"]
)
def test_a_place_that_cannot_be_is_refused(query: str) -> None:
    """Names are plain, so that no quoting is needed anywhere."""
    with pytest.raises(ConfigurationError) as refused:
        postgres_place(f"postgresql://me:secret@host/shop?{query}")
    assert "secret" not in str(refused.value)


def test_a_place_shows_no_secret_and_passes_the_rest_on() -> None:
    """libpq's own parameters go to libpq; passwords are masked wherever they stand."""
    place = postgres_place("postgresql://me:s3cret@one,two:5433/shop?sslmode=verify-full&schema=a&password=s3cret")
    assert "s3cret" not in place.shown
    assert "s3cret" not in repr(place)
    assert "sslmode=verify-full" in place.url
    assert "target_session_attrs=read-write" in place.url
    assert "schema" not in place.url
    assert "a.tidewire_mark" == place.named("mark")


def test_the_grants_of_the_docs_are_enough(postgresql_url: str) -> None:
    """A role with the least privileges runs the whole store, and may not change its tables."""

    async def scenario(url: str) -> None:
        async with open_postgres_store(url) as store:
            unit = store.unit()
            await unit.tx.execute("INSERT INTO billing.payments VALUES ('a')")
            await store.inbox.mark(unit, Mark("g", "h", 0, "s", "1"), b"d")
            await (await unit.seal())
            assert 1 == await store.inbox.prune(1 << 60, 10)
            assert 1 == await store.lanes.adopt("g", "t/0", 1)
            assert 1 == await store.attempts.begin("g", "s", "1")
            assert 1 == await store.inbox.next_run("g")
            refused = store.unit()
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await refused.tx.execute("DROP TABLE billing.tidewire_mark")
            await refused.rollback()

    async def make() -> None:
        place = f"{postgresql_url}?schema=billing"
        async with open_postgres_store(place, provision=True) as store, transaction(store) as tx:
            await tx.execute("CREATE TABLE billing.payments (id text)")

    asyncio.run(make())
    page = (Path(__file__).resolve().parents[2] / "docs" / "postgresql.md").read_text()
    grants = page.partition("```sql\n-- grants")[2].partition("```")[0]
    assert "GRANT" in grants
    role = f"billing_{postgresql_url.rpartition('/')[2]}"
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'least'".encode())
        try:
            connection.execute(f"-- {grants}".replace("billing_service", role).encode())
            host = postgresql_url.rpartition("@")[2]
            asyncio.run(scenario(f"postgresql://{role}:least@{host}?schema=billing"))
        finally:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
