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
from tidewire.testing.servers.services import Service, obeyed

__all__ = ["VARIABLE", "NoServer", "PostgresServer", "private_server"]

VARIABLE = "TIDEWIRE_TEST_POSTGRESQL"
_SERVICE = Service(
    "PostgreSQL",
    root=Path(__file__).resolve().parent.parent,
    record="postgresql.running",
    lines=("# folder: {folder}", f"export {VARIABLE}={{url}}"),
)


def _started() -> PostgresServer:
    return started("postgresql", lambda folder: PostgresServer(folder, durable=True), outlives=True)


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    try:
        match arguments:
            case ["up" | "down" as word]:
                said = obeyed(_SERVICE, word, start=_started, end_by=signal.SIGINT, idle="nothing runs")
                print(f"services: {said}")
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except NoServer as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
