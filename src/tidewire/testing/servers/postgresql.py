"""A PostgreSQL of one's own, for a test, a benchmark or the demo: a free port on 127.0.0.1, a data folder, one pid.

Needs only the standard library and the server's programs: those on PATH, or of Debian's packages.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tidewire.testing.servers.processes import (
    OURSELVES,
    Account,
    NoServer,
    ended,
    free_port,
    launched,
    started,
    wait_until_gone,
    wait_until_ready,
)

__all__ = ["NoServer", "PostgresServer", "private_server"]

_OLDEST = 13
_READY_MAX = 60.0
_END_MAX = 60.0


def _nobody() -> Account:
    """Return `nobody` if we are root: the server refuses to run as root."""
    if os.geteuid() != 0:
        return OURSELVES
    return Account("nobody", "nogroup" if Path("/etc/debian_version").exists() else "nobody", ())


_NOBODY = _nobody()


@dataclass
class PostgresServer:
    """One server in *folder*. *settings* go into its configuration; *durable* is fsync, off where only a process dies.

    It listens on 127.0.0.1 alone and wants a password that is made for it.
    """

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    durable: bool = False
    binaries: Path = field(default_factory=lambda: _find_binaries())
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(8))
    _process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    @property
    def pid(self) -> int:
        """The process that has started all others of the server, while it runs."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def url(self) -> str:
        """The superuser's URL, of the database ``postgres``."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return the superuser's URL of *database*."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def create(self) -> None:
        """Make the data folder. A root user has it made by `nobody`, because the server refuses to run as root."""
        secret = self.folder / "password"
        self.folder.mkdir(parents=True, exist_ok=True)
        secret.write_text(self.password)
        secret.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(self.folder, "nobody")
            shutil.chown(secret, "nobody")
        self._run(
            *("initdb", "--pgdata", str(self.data), "--username=postgres", "--auth=scram-sha-256", "--no-sync"),
            *("--encoding=UTF8", "--no-locale", f"--pwfile={secret}"),
        )
        self._configure()

    def copy_to(self, folder: Path, **settings: str) -> PostgresServer:
        """Return a standby of this server, not yet started, that follows it."""
        standby = PostgresServer(folder, settings, self.durable, self.binaries, password=self.password)
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
        self._run(
            *("pg_basebackup", "--pgdata", str(standby.data), "--write-recovery-conf", "--checkpoint=fast"),
            *("--no-sync", "--dbname", self.url),
        )
        standby._configure()
        return standby

    def start(self, *, outlives: bool = False) -> None:
        """Start it and wait until it takes connections. Unless it *outlives* us, it ends with this process.

        Raises:
            NoServer: it did not start; its log is in the text.
        """
        self._process = launched(
            [str(self.binaries / "postgres"), "-D", str(self.data)],
            self.folder,
            end_by=None if outlives else signal.SIGINT,
            environment=_environment(),
            account=_NOBODY,
        )
        wait_until_ready(self._process, self._is_ready, name="PostgreSQL", folder=self.folder, seconds=_READY_MAX)

    def stop(self) -> None:
        """End it in good order, cutting off who is connected; nothing if it does not run."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill it as a crash would: no checkpoint, no good-bye; all its processes are gone on return."""
        pids = self._processes()
        self._end(signal.SIGKILL)
        for pid in pids:  # its children notice by themselves, a little later: a restart must not meet them
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until_gone(pids, 10.0)

    def restart(self) -> None:
        """Stop it and start it again on the same port."""
        self.stop()
        self.start()

    def promote(self) -> None:
        """Make a standby take writes."""
        self._run("pg_ctl", "promote", "-D", str(self.data), "-w")

    def remove(self) -> None:
        """Stop it and delete everything."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        settings = {
            "port": str(self.port),
            "listen_addresses": "'127.0.0.1'",
            "unix_socket_directories": f"'{self.folder}'",
            "max_connections": "200",
            "fsync": "on" if self.durable else "off",
            "jit": "off",
            "autovacuum_naptime": "5s",
            **self.settings,
        }
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def _is_ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        ours = self._process is not None and lines[:1] == [str(self._process.pid)]
        return ours and [line.strip() for line in lines[7:8]] == ["ready"]

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            ended(self._process, how, seconds=_END_MAX)
            self._process = None

    def _processes(self) -> list[int]:
        if self._process is None:
            return []
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603 - a program beside that server
            [str(self.binaries / program), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env=_environment(),
            user=_NOBODY.user,
            group=_NOBODY.group,
            extra_groups=_NOBODY.groups,
        )
        if done.returncode:
            raise NoServer(f"{program} failed: {done.stderr.strip()}")


def _find_binaries() -> Path:
    """Return the folder with `initdb` and `postgres`, the newest of Debian's where several are there.

    Raises:
        NoServer: none is installed.
    """
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    debian = Path("/usr/lib/postgresql")
    if debian.is_dir():
        versions = [entry for entry in debian.iterdir() if entry.name.isdigit() and int(entry.name) >= _OLDEST]
        found += [entry / "bin" for entry in sorted(versions, key=lambda entry: -int(entry.name))]
    for folder in found:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise NoServer("PostgreSQL is not installed: apt-get install postgresql (13 or newer)")


@contextlib.contextmanager
def private_server(*, durable: bool = False, **settings: str) -> Generator[PostgresServer]:
    """Yield a running server in a temporary folder, and remove it."""
    server = started("postgresql", lambda folder: PostgresServer(folder, settings, durable))
    try:
        yield server
    finally:
        server.remove()


def _environment() -> dict[str, str]:
    """Return our environment without what would mislead the server's programs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
