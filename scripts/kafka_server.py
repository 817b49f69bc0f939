"""An Apache Kafka of our own, for tests and benchmarks, that outlives the command that starts it.

python scripts/kafka_server.py fetch   get the server's archives from Maven's central repository
python scripts/kafka_server.py up      start one; adds itself to build/services.env
python scripts/kafka_server.py down    stop it and remove its data

The archives stay in ``build/kafka``, or where TIDEWIRE_TEST_KAFKA_LIBS says.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tidewire.testing.servers.kafka import (
    LIBS,
    USERS,
    VERSION,
    KafkaServer,
    NoServer,
    fetched,
    private_cluster,
    private_kafka,
)
from tidewire.testing.servers.processes import started
from tidewire.testing.servers.services import Service, obeyed

__all__ = ["USERS", "VARIABLE", "KafkaServer", "NoServer", "fetched", "private_cluster", "private_kafka"]

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "TIDEWIRE_TEST_KAFKA"
_SERVICE = Service("Apache Kafka", ROOT, record="kafka/running", lines=(f"export {VARIABLE}={{url}}",))
# Whoever starts a broker for this repository takes the archives from here, in a child process too.
os.environ.setdefault(LIBS, str(ROOT / "build" / "kafka" / VERSION))


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    try:
        match arguments:
            case ["fetch"]:
                print(fetched())
            case ["up" | "down" as word]:
                said = obeyed(_SERVICE, word, start=lambda: started("kafka", KafkaServer, outlives=True), seconds=120.0)
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
