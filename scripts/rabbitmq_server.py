"""A RabbitMQ of our own, for tests and benchmarks, that outlives the command that starts it.

python scripts/rabbitmq_server.py up      start one; adds itself to build/services.env
python scripts/rabbitmq_server.py down    stop it and remove its data
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tidewire.testing.servers.processes import started
from tidewire.testing.servers.rabbitmq import NoServer, RabbitServer, private_rabbit
from tidewire.testing.servers.services import Service, obeyed

__all__ = ["VARIABLE", "NoServer", "RabbitServer", "private_rabbit"]

VARIABLE = "TIDEWIRE_TEST_RABBITMQ"
_SERVICE = Service(
    "RabbitMQ",
    root=Path(__file__).resolve().parent.parent,
    record="rabbitmq.running",
    lines=(f"export {VARIABLE}={{url}}",),
)


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    try:
        match arguments:
            case ["up" | "down" as word]:
                said = obeyed(_SERVICE, word, start=lambda: started("rabbitmq", RabbitServer, outlives=True))
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
