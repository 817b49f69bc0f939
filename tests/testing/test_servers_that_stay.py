"""Servers that stay: one file tells of all of them, and each takes out only what it put in."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import Popen

import pytest

from tidewire.testing.servers.processes import NoServer, is_alive, launched, started, wait_until_ready
from tidewire.testing.servers.services import Service

_WAIT = "import signal; print('ready', flush=True); signal.pause()"


@dataclass
class Waiter:
    """A process that waits; *fails* lets it not start."""

    folder: Path
    fails: bool = False
    _process: Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its pid."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """A URL of its own."""
        return f"waiter://me:secret@127.0.0.1/{self.folder.name}"

    def create(self) -> None:
        """Nothing to make."""

    def start(self, *, outlives: bool = False) -> None:
        """Start it."""
        if self.fails:
            raise NoServer("it does not start")
        command = [sys.executable, "-c", _WAIT, str(self.folder)]
        self._process = launched(command, self.folder, end_by=None if outlives else signal.SIGKILL)
        log = self.folder / "log"
        wait_until_ready(self._process, lambda: log.stat().st_size > 0, name="waiter", folder=self.folder, seconds=20.0)

    def remove(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def service(root: Path, name: str) -> Service:
    """Return a service of *root*."""
    return Service(name, root, record=f"{name}.running", lines=(f"# {name}: {{folder}}", f"export {name}={{url}}"))


def start() -> Waiter:
    """Start a waiter that outlives us."""
    return started("waiter", Waiter, outlives=True)


def lines(name: str, waiter: Waiter) -> list[str]:
    """Return what the service *name* tells of *waiter*."""
    return [f"# {name}: {waiter.folder}", f"export {name}={waiter.url}"]


def test_services_come_and_go_in_any_order(tmp_path: Path) -> None:
    """What the first put into the file stays when the second comes, and goes with the first; then the file goes."""
    one, two, environment = service(tmp_path, "ONE"), service(tmp_path, "TWO"), tmp_path / "build" / "services.env"
    waiters = [start(), start()]
    first, second = lines("ONE", waiters[0]), lines("TWO", waiters[1])
    try:
        assert "ONE on 127.0.0.1; source build/services.env" == one.up(lambda: waiters[0])
        two.up(lambda: waiters[1])
        assert f"ONE runs already, pid {waiters[0].pid}; build/services.env says where" == one.up(start)
        assert sorted([*first, *second]) == sorted(environment.read_text().splitlines())
        assert 0o600 == environment.stat().st_mode & 0o777
        assert waiters[0].pid == one.down(signal.SIGTERM, 20.0)
        assert second == environment.read_text().splitlines()
        assert waiters[1].pid == two.down(signal.SIGTERM, 20.0)
        assert [False] * 4 == [there for each in waiters for there in (is_alive(each.pid), each.folder.exists())]
        assert [] == list((tmp_path / "build").iterdir())
        assert one.down(signal.SIGTERM, 20.0) is None
    finally:
        for each in waiters:
            each.remove()


def test_what_does_not_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot be had tells no shell of itself, and its folder is gone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(NoServer):
        service(tmp_path, "ONE").up(lambda: started("waiter", partial(Waiter, fails=True), outlives=True))
    assert [] == list(tmp_path.iterdir())


def test_another_process_with_the_pid_is_not_ours(tmp_path: Path) -> None:
    """A record of a process that does not name our folder is no record of a server, and it is left alone."""
    one = service(tmp_path, "ONE")
    (tmp_path / "build").mkdir()
    other = launched([sys.executable, "-c", _WAIT], tmp_path, end_by=signal.SIGKILL)
    try:
        (tmp_path / "build" / "ONE.running").write_text(f"{tmp_path / 'other'}\n{other.pid}\nwaiter://\n")
        assert one.down(signal.SIGKILL, 20.0) is None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
