"""A PostgreSQL of our own, for tests and benchmarks, that outlives the command that starts it.

python scripts/postgres_server.py up      start one; adds itself to build/services.env
python scripts/postgres_server.py down    stop it and remove its data
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tidewire.testing.servers.postgresql import NoServer, PostgresServer, private_server
from tidewire.testing.servers.processes import started
from tidewire.testing.servers.services import Service

__all__ = ["VARIABLE", "NoServer", "PostgresServer", "private_server"]

VARIABLE = "TIDEWIRE_TEST_POSTGRESQL"
_SERVICE = Service(
    "PostgreSQL",
    root=Path(__file__).resolve().parent.parent,
    record="postgresql.running",
    lines=("# folder: {folder}", f"export {VARIABLE}={{url}}"),
)
_DOWN_MAX = 60.0


def _started() -> PostgresServer:
    return started("postgresql", lambda folder: PostgresServer(folder, durable=True), outlives=True)


def up() -> int:
    """Start a server that outlives this command, unless one runs; write where it is."""
    try:
        print(f"services: {_SERVICE.up(_started)}")
    except NoServer as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def down() -> int:
    """Stop what `up` started, by its pid, and remove its data."""
    pid = _SERVICE.down(signal.SIGINT, _DOWN_MAX)
    print("services: nothing runs" if pid is None else f"services: PostgreSQL (pid {pid}) has ended")
    return 0


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
