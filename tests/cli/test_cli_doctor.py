"""``tidewire doctor``: what is wrong with an environment is found, named and comes with its fix."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tidewire import Options, Service, event, running, transaction
from tidewire.cli import exits
from tidewire.clock import SystemClock
from tidewire.model import GroupSpec, TopicSpec
from tidewire.operations.doctoring import is_well
from tidewire.rules.findings import Section
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.sqlite import open_sqlite_transport


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """Travels."""

    order_id: str


class Ahead(SystemClock):
    """A wall clock that is an hour ahead."""

    def now_us(self) -> int:
        return super().now_us() + 3_600_000_000


@dataclass
class Site:
    """A folder with a broker and a store."""

    path: Path

    def doctor(self, *arguments: str, limit: str = "true", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command in the folder, after *limit* in the same shell."""
        known = {name: value for name, value in os.environ.items() if not name.startswith("TIDEWIRE_")}
        shell = ["/bin/sh", "-c", f'{limit}; exec "$0" -m tidewire.cli doctor "$@"', sys.executable, *arguments]
        return subprocess.run(
            shell, capture_output=True, text=True, timeout=60, check=False, cwd=self.path, env={**known, **environment}
        )

    def findings(self, *arguments: str, code: int, limit: str = "true", **environment: str) -> dict[str, Any]:
        """Return the findings by their codes, but for SQLite's age, which is this machine's."""
        answer = self.doctor(*arguments, "--json", limit=limit, **environment)
        assert (code, "") == (answer.returncode, answer.stderr)
        document = json.loads(answer.stdout)
        assert (code == exits.OK) == document["well"]
        found = {one["code"]: one for section in document["sections"] for one in section["findings"]}
        assert all(one["fix"] for one in found.values())
        return {name: one for name, one in found.items() if name != "sqlite-old"}


BROKER = ("--broker", "sqlite:///broker.db")
STORE = ("--store", "sqlite:///store.db")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A folder with a broker that has one topic, and a store."""

    async def make() -> None:
        async with open_sqlite_transport(tmp_path / "broker.db") as broker, open_sqlite_store(tmp_path / "store.db"):
            await broker.provision([TopicSpec("shop.order", lanes=1)], [GroupSpec("billing", ["shop.order"])])

    asyncio.run(make())
    return Site(tmp_path)


def test_all_is_well(site: Site) -> None:
    """Versions, extras, clock, limits, broker and store are told, and exit 0."""
    answer = site.doctor(*BROKER, *STORE)
    assert (exits.OK, "") == (answer.returncode, answer.stderr)
    for part in ("tidewire  ", "SQLite    ", "cron  ", "boot  ", "open files", "reachable    yes, 1 topics", "0 stuck"):
        assert part in answer.stdout
    assert answer.stdout.splitlines()[-1].startswith("all is well")
    assert {} == site.findings(*BROKER, *STORE, code=exits.OK)


def test_nothing_is_created_or_changed(site: Site) -> None:
    """Every file is as it was, but for the shared memory in which SQLite's readers stand; none is made."""

    def everything() -> dict[str, tuple[bytes, int]]:
        files = [path for path in site.path.iterdir() if not path.name.endswith("-shm")]
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before, names = everything(), set(os.listdir(site.path))
    site.findings(*BROKER, *STORE, code=exits.OK)
    site.findings("--broker", "sqlite:///new/broker.db", "--store", "sqlite:///new.db", code=exits.OK)
    assert (before, names) == (everything(), set(os.listdir(site.path)))


def test_a_broker_in_use_is_examined_without_disturbing_it(site: Site) -> None:
    """While somebody has it open and publishes."""

    async def scenario() -> None:
        async with (
            open_sqlite_transport(site.path / "broker.db") as broker,
            running(Service("shop"), transport=broker) as app,
        ):
            await app.publisher.publish(OrderPlaced("1"))
            answer = await asyncio.to_thread(site.doctor, *BROKER)
            assert (exits.OK, True) == (answer.returncode, "1 messages" in answer.stdout)
            await app.publisher.publish(OrderPlaced("2"))

    asyncio.run(scenario())


def test_damage_is_found(site: Site) -> None:
    """A page that was overwritten is told, with what to do."""
    for name in ("broker.db-wal", "broker.db-shm"):
        (site.path / name).unlink(missing_ok=True)
    size = (site.path / "broker.db").stat().st_size
    with closing(open(site.path / "broker.db", "r+b")) as file:
        file.seek(8_192)
        file.write(b"\xff" * (size - 8_192))
    found = site.findings(*BROKER, code=exits.FAILED)
    assert {"file-damaged", "file-refused"} & set(found)
    assert "restore a backup" in str(found)


@pytest.mark.parametrize("content", [b"not a database", b""])
def test_a_file_that_is_no_broker_is_refused(site: Site, content: bytes) -> None:
    """And so is a store's file in its place."""
    (site.path / "other.db").write_bytes(content)
    assert "file-refused" in site.findings("--broker", "sqlite:///other.db", code=exits.FAILED)
    found = site.findings("--broker", "sqlite:///store.db", code=exits.FAILED)
    assert "another program" in found["file-refused"]["what"]


@pytest.mark.parametrize("name", ["broker", "store"])
def test_a_file_that_was_taken_away_from_its_log_is_an_error(site: Site, name: str) -> None:
    """It is not taken for one that is still to be made: the fix says what to put back."""
    (site.path / f"{name}.db").rename(site.path / "elsewhere.db")
    (site.path / f"{name}.db-wal").write_bytes(b"what the moved file lacks")
    found = site.findings(*BROKER, *STORE, code=exits.FAILED)
    assert f"is missing, but its log {name}.db-wal is there" in found["file-refused"]["what"]
    assert "put the file back" in found["file-refused"]["fix"]


def test_what_is_open_to_others_or_large_is_warned_about(site: Site) -> None:
    """A warning leaves exit 0; --strict does not."""
    (site.path / "store.db").chmod(0o644)
    with closing(open(site.path / "store.db-wal", "ab")) as log:
        log.truncate(65 << 20)
    found = site.findings(*BROKER, *STORE, code=exits.OK)
    assert {"file-open-to-others", "log-large"} == set(found)
    assert exits.FAILED == site.doctor(*BROKER, *STORE, "--strict").returncode


def test_clocks_that_disagree_are_found(site: Site) -> None:
    """A file that was changed, or a message that was stored, in the future."""
    later = SystemClock().now_us() * 1_000 + 3_600_000_000_000
    os.utime(site.path / "store.db", ns=(later, later))
    found = site.findings(*BROKER, *STORE, code=exits.FAILED)
    assert ("clock-behind", "store") == (found["clock-behind"]["code"], found["clock-behind"]["where"])
    os.utime(site.path / "store.db")

    async def publish_ahead() -> None:
        async with (
            open_sqlite_transport(site.path / "broker.db", clock=Ahead()) as broker,
            running(Service("shop"), transport=broker) as app,
        ):
            await app.publisher.publish(OrderPlaced("1"))

    asyncio.run(publish_ahead())
    found = site.findings(*BROKER, code=exits.FAILED)
    assert "newest message" in found["clock-behind"]["what"]


def test_an_outbox_that_nobody_empties_is_found(site: Site) -> None:
    """Rows that wait while no process relays, and rows that the broker refused for good."""

    async def leave_rows() -> None:
        async with (
            open_sqlite_transport(site.path / "broker.db") as broker,
            open_sqlite_store(site.path / "store.db") as store,
            running(Service("shop"), transport=broker, store=store, options=Options(relay=False)) as app,
            transaction(store) as tx,
        ):
            await app.publisher.publish(OrderPlaced("1"), tx=tx)

    async def refuse_it() -> None:
        async with open_sqlite_store(site.path / "store.db") as store:
            assert await store.backlog.lease("test", timedelta(seconds=1))
            (row,) = await store.backlog.claim("test", after=0, limit=10)
            assert await store.backlog.refused("test", row.row, detail="too large", attempts_max=1)
            await store.backlog.lease("test", timedelta(0))

    asyncio.run(leave_rows())
    assert {"outbox-not-relayed"} == set(site.findings(*BROKER, *STORE, code=exits.OK))
    asyncio.run(refuse_it())
    assert {"outbox-stuck"} == set(site.findings(*BROKER, *STORE, code=exits.FAILED))


def test_limits_that_are_low_are_found(site: Site) -> None:
    """Open files and the size of a file."""
    found = site.findings(*BROKER, code=exits.OK, limit="ulimit -n 100; ulimit -f 100000")
    assert {"few-open-files", "file-size-limited"} == set(found)


def test_wrong_settings_are_found_and_the_rest_is_told(site: Site) -> None:
    """They are a finding with the nearest name, not the end of the examination."""
    found = site.findings(code=exits.FAILED, TIDEWIRE_GRACCE="20")
    assert "did you mean 'grace'?" in found["settings-wrong"]["what"]
    assert "settings-wrong" in site.findings("--broker", "nothing://x", code=exits.FAILED)


def test_a_password_is_never_shown(site: Site) -> None:
    """Not even in what is refused."""
    answer = site.doctor("--broker", "kafka://me:secret@host")
    assert exits.FAILED == answer.returncode
    assert "secret" not in answer.stdout + answer.stderr


def test_bad_use_is_answered_with_a_hint(site: Site) -> None:
    """Exit 2."""
    answer = site.doctor("--brokr", "x")
    assert (exits.USAGE, "") == (answer.returncode, answer.stdout)
    assert "did you mean '--broker'?" in answer.stderr


def test_warnings_count_when_asked_to() -> None:
    """An error is always wrong, a warning with strict."""
    section = Section(name="x")
    assert is_well([section], strict=True)
    section.warning("w", "may become wrong", fix="mend it")
    assert (True, False) == (is_well([section]), is_well([section], strict=True))
    section.error("e", "is wrong", fix="mend it")
    assert not is_well([section])
