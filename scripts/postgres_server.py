"""A PostgreSQL of our own, for tests and benchmarks, that outlives the command that starts it.

python scripts/postgres_server.py up      start one; writes build/services.env
python scripts/postgres_server.py down    stop it and remove its data
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tidewire.testing.servers.postgresql import NoServer, PostgresServer, is_alive, private_server

__all__ = ["VARIABLE", "NoServer", "PostgresServer", "private_server"]

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / "build" / "services.env"
VARIABLE = "TIDEWIRE_TEST_POSTGRESQL"
_FOLDER = "# folder: "
_READY_MAX = 60.0


def up() -> int:
    """Start a server that outlives this command, unless one runs; write where it is."""
    if (running := _running()) is not None:
        print(f"services: PostgreSQL runs already, pid {running[1]}; {ENVIRONMENT.relative_to(ROOT)} says where")
        return 0
    try:
        server = PostgresServer(Path(tempfile.mkdtemp(prefix="tidewire-postgresql-")), durable=True)
        try:
            server.create()
            server.start(outlives=True)
        except BaseException:
            server.remove()
            raise
    except NoServer as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    ENVIRONMENT.write_text(f"{_FOLDER}{server.folder}\nexport {VARIABLE}={server.url}\n")
    ENVIRONMENT.chmod(0o600)
    print(f"services: PostgreSQL on 127.0.0.1:{server.port}; source {ENVIRONMENT.relative_to(ROOT)}")
    return 0


def down() -> int:
    """Stop what `up` started, by its pid, and remove its data."""
    running = _running()
    if running is None:
        print("services: nothing runs")
    else:
        folder, pid = running
        os.kill(pid, signal.SIGINT)
        deadline = time.monotonic() + _READY_MAX
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)
        print(f"services: PostgreSQL (pid {pid}) has ended")
    ENVIRONMENT.unlink(missing_ok=True)
    return 0


def _running() -> tuple[Path, int] | None:
    """Return the folder and the pid of the server that `up` started, if it is still that server."""
    if not ENVIRONMENT.exists():
        return None
    line = ENVIRONMENT.read_text().splitlines()[0]
    folder = Path(line.removeprefix(_FOLDER))
    try:
        pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return (folder, pid) if str(folder).encode() in command else None


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    match arguments:
        case ["up"]:
            return up()
        case ["down"]:
            return down()
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
