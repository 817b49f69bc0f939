"""``tidewire store``: the tables in a service's own database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from tidewire.cli import exits


def store(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command with no setting but those given."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("TIDEWIRE_")}
    command = [sys.executable, "-m", "tidewire.cli", "store", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder, env=known)


def test_tables_are_missing_then_made_then_up_to_date(postgresql_url: str) -> None:
    """`status` says what is there with its exit code, `upgrade` makes it once, and neither shows the password."""
    place = ("--store", f"{postgresql_url}?schema=billing&prefix=tw_")
    missing = store("status", *place)
    assert (exits.FAILED, "") == (missing.returncode, missing.stderr)
    assert "missing" in missing.stdout
    made = store("upgrade", *place)
    assert (exits.OK, "") == (made.returncode, made.stderr)
    again = store("upgrade", *place, "--json")
    assert {"before": 1, "version": 1} == json.loads(again.stdout)
    status = store("status", *place, "--json")
    found = json.loads(status.stdout)
    assert (exits.OK, "up to date") == (status.returncode, found["state"])
    assert {"billing.tw_mark", "billing.tw_outbox", "billing.tw_lane"} <= set(found["tables"])
    password = urlsplit(postgresql_url).password
    assert password
    for answer in (missing, made, again, status):
        assert password not in answer.stdout + answer.stderr


def test_printed_sql_makes_what_upgrade_makes(postgresql_url: str) -> None:
    """A person who applies the SQL by hand has a store that is up to date; nothing is connected to for printing it."""
    printed = store("sql", "--store", "postgresql://nobody@127.0.0.1:1/nowhere?schema=orders")
    assert (exits.OK, "") == (printed.returncode, printed.stderr)
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(printed.stdout.encode())
    status = store("status", "--store", f"{postgresql_url}?schema=orders", "--json")
    assert (exits.OK, "up to date") == (status.returncode, json.loads(status.stdout)["state"])


def test_sql_is_printed_from_versions_that_there_are() -> None:
    """From the newest version there is nothing to do, which is SQL too; a version that never was is refused."""
    place = ("--store", "postgresql://nobody@127.0.0.1:1/nowhere")
    newest = store("sql", "--from", "1", *place)
    assert (exits.OK, "-- Nothing to do: version 1 is the newest.\n") == (newest.returncode, newest.stdout)
    beyond = store("sql", "--from", "99", *place)
    assert (exits.USAGE, "") == (beyond.returncode, beyond.stdout)
    assert "--from 99: this tidewire knows the versions 0 (no tables yet) to 1" in beyond.stderr


def test_newer_tables_are_refused(postgresql_url: str) -> None:
    """An old program does not touch what a newer one has made, and says which of them is newer."""
    assert exits.OK == store("upgrade", "--store", postgresql_url).returncode
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("INSERT INTO tidewire_schema (version) VALUES (99)")
    refused = store("upgrade", "--store", postgresql_url)
    assert (exits.USAGE, "") == (refused.returncode, refused.stdout)
    assert "version 99, and this tidewire knows 1" in refused.stderr
    status = store("status", "--store", postgresql_url)
    assert (exits.FAILED, True) == (status.returncode, "newer" in status.stdout)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    """Exit 3: time may help."""
    answer = store("status", "--store", "postgresql://shop:secret@127.0.0.1:1/shop")
    assert (exits.UNAVAILABLE, "") == (answer.returncode, answer.stdout)
    assert "postgresql://shop:***@127.0.0.1:1/shop" in answer.stderr
    assert "secret" not in answer.stderr


def test_a_sqlite_file_has_tables_too(tmp_path: Path) -> None:
    """The command takes the store of every service; a file that is not there is made by `upgrade` alone."""
    place = ("--store", "sqlite:///store.db")
    assert exits.FAILED == store("status", *place, folder=tmp_path).returncode
    assert not (tmp_path / "store.db").exists()
    assert exits.OK == store("upgrade", *place, folder=tmp_path).returncode
    assert exits.OK == store("status", *place, folder=tmp_path).returncode
    assert "CREATE TABLE tidewire_mark" in store("sql", *place, folder=tmp_path).stdout


def test_no_store_is_a_usage_error(tmp_path: Path) -> None:
    """Exit 2, with the option and the variable named."""
    answer = store("status", folder=tmp_path)
    assert exits.USAGE == answer.returncode
    assert "--store" in answer.stderr
    assert "TIDEWIRE_STORE" in answer.stderr
