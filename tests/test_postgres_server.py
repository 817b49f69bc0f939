"""The PostgreSQL that tests use: private, stopped by its pid, and what was committed outlives its death."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from postgres_server import NoServer, private_server

from source_tree import ROOT


def test_each_test_has_an_empty_database(postgresql_url: str) -> None:
    """What one test leaves behind, no other finds."""
    with psycopg.connect(postgresql_url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
        version = connection.info.server_version
    assert (0,) == tables
    assert version >= 130_000


def test_a_killed_server_comes_back_with_what_was_committed() -> None:
    """SIGKILL is a crash: connections break, and a start on the same folder and port recovers."""
    try:
        with private_server() as server:
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
                server.kill()
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("SELECT 1")
            server.start()
            with psycopg.connect(server.url) as connection:
                assert (1,) == connection.execute("SELECT one FROM kept").fetchone()
            folder = server.folder
    except NoServer as error:
        pytest.skip(f"not proven: needs a PostgreSQL server: {error}")
    assert not folder.exists()


def test_services_come_up_and_go_down(tmp_path: Path) -> None:
    """`up` writes where the server is and is harmless when repeated; `down` leaves no process and no data."""
    script = tmp_path / "scripts" / "postgres_server.py"
    script.parent.mkdir()
    script.write_text((ROOT / "scripts" / "postgres_server.py").read_text())

    def run(word: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(script), word], capture_output=True, text=True, check=False)

    done = run("up")
    if "not installed" in done.stderr:
        pytest.skip(f"not proven: needs a PostgreSQL server: {done.stderr}")
    try:
        assert (0, "") == (done.returncode, done.stderr)
        folder, export = (tmp_path / "build" / "services.env").read_text().splitlines()
        url = export.removeprefix("export TIDEWIRE_TEST_POSTGRESQL=")
        with psycopg.connect(url) as connection:
            assert ("on",) == connection.execute("SHOW fsync").fetchone()
        assert "runs already" in run("up").stdout
    finally:
        done = run("down")
    assert "has ended" in done.stdout
    assert not Path(folder.removeprefix("# folder: ")).exists()
    assert not (tmp_path / "build" / "services.env").exists()
    assert "nothing runs" in run("down").stdout
