"""The recipe of docs/how-to/alembic.md, with Alembic on a real database."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from tidewire.config import open_store

REVISION = """
import json
from pathlib import Path
from alembic import op

revision, down_revision = "0001", None


def upgrade():
    for statement in json.loads(Path(r"{statements}").read_text())["statements"]:
        op.execute(statement)
"""
BROKEN = """
revision, down_revision = "0002", "0001"


def upgrade():
    raise ZeroDivisionError("the next migration fails")
"""
ENVIRONMENT = """
from alembic import context
from sqlalchemy import create_engine, pool

url = context.config.get_main_option("sqlalchemy.url")
if context.is_offline_mode():
    context.configure(url=url, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        context.configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()
"""


def include_name(name: str | None, type_: str, parent_names: object) -> bool:
    return not (type_ == "table" and (name or "").startswith("tidewire_"))


def tables(url: str) -> list[str]:
    """Return the names of all tables that there are."""
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        names = sqlalchemy.inspect(connection).get_table_names()
    engine.dispose()
    return names


@pytest.mark.filterwarnings("ignore:Did not recognize type 'xid8'")  # SQLAlchemy looks at all tables at once
def test_a_revision_makes_the_tables_and_autogenerate_leaves_them_alone(tmp_path: Path, postgresql_url: str) -> None:
    """`tidewire store sql` is a migration, online and as printed SQL; what it makes is no difference to metadata, and
    goes with Alembic's transaction where a later one fails."""
    printed = subprocess.run(
        [sys.executable, "-m", "tidewire.cli", "store", "sql", "--json", "--store", postgresql_url],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    (tmp_path / "tidewire.json").write_text(printed)
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "0001.py").write_text(REVISION.replace("{statements}", str(tmp_path / "tidewire.json")))
    (tmp_path / "env.py").write_text(ENVIRONMENT)
    offline = (tmp_path / "offline.sql").open("w+")
    config = Config(output_buffer=offline)
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")
    url = postgresql_url.replace("postgresql:", "postgresql+psycopg:")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, "head", sql=True)
    offline.seek(0)
    assert "CREATE TABLE public.tidewire_outbox" in offline.read()
    offline.close()
    (tmp_path / "versions" / "0002.py").write_text(BROKEN)
    with pytest.raises(ZeroDivisionError):
        command.upgrade(config, "head")
    assert [] == tables(url)
    (tmp_path / "versions" / "0002.py").unlink()
    command.upgrade(config, "head")

    async def opens() -> None:
        async with open_store(postgresql_url):
            pass

    asyncio.run(opens())
    assert "tidewire_outbox" in tables(url)
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        told = MigrationContext.configure(connection, opts={"include_name": include_name})
        assert [] == compare_metadata(told, sqlalchemy.MetaData())
    engine.dispose()
