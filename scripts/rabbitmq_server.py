"""A RabbitMQ of our own, for tests and benchmarks, that outlives the command that starts it.

python scripts/rabbitmq_server.py up      start one; adds itself to build/services.env
python scripts/rabbitmq_server.py down    stop it and remove its data
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tidewire.testing.servers.processes import started
from tidewire.testing.servers.rabbitmq import NoServer, RabbitServer, private_rabbit
from tidewire.testing.servers.services import Service

__all__ = ["VARIABLE", "NoServer", "RabbitServer", "private_rabbit"]

VARIABLE = "TIDEWIRE_TEST_RABBITMQ"
_SERVICE = Service(
    "RabbitMQ",
    root=Path(__file__).resolve().parent.parent,
    record="rabbitmq.running",
    lines=(f"export {VARIABLE}={{url}}",),
)
_DOWN_MAX = 60.0


def up() -> int:
    """Start a broker that outlives this command, unless one runs; write where it is."""
    try:
        print(f"services: {_SERVICE.up(lambda: started('rabbitmq', RabbitServer, outlives=True))}")
    except NoServer as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def down() -> int:
    """Stop what `up` started, by its pid, and remove its data."""
    pid = _SERVICE.down(signal.SIGTERM, _DOWN_MAX)
    print("services: no RabbitMQ runs" if pid is None else f"services: RabbitMQ (pid {pid}) has ended")
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
