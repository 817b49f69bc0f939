"""One service of the shop as a process of its own: ``python -m tidewire.cli.demo.worker SERVICE …``.

Its broker and its store are in the environment, as those of any service, where no list of processes shows them.
Started and killed by the supervisor; tells it on standard output, a line of JSON at a time, what it has done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from tidewire import Options, Running, running
from tidewire.cli.demo.door import Door, serve_door
from tidewire.cli.demo.plants import PLANTS, plant
from tidewire.cli.demo.shop.services import SERVICES
from tidewire.cli.demo.supervisor import PATIENCE
from tidewire.cli.exits import UNAVAILABLE
from tidewire.cli.processes import follow_parent
from tidewire.config import open_store, open_transport, settings_from
from tidewire.errors import StoreUnavailable, TransportUnavailable
from tidewire.model import Fact
from tidewire.protocols import Store
from tidewire.runtime.parts import Parts

__all__ = ["OPTIONS", "main"]

OPTIONS = Options(lease=timedelta(seconds=1), grace=timedelta(seconds=5), max_hold=timedelta(seconds=30))
_TELL_EVERY = 0.2


class Teller:
    """An observer that counts, and tells the supervisor."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def record(self, facts: Sequence[Fact]) -> None:
        """Count facts by kind."""
        self._counts.update(fact.kind for fact in facts)

    def tell(self) -> None:
        """Write what is new as one line."""
        if self._counts:
            sys.stdout.write(json.dumps(self._counts) + "\n")
            sys.stdout.flush()
            self._counts.clear()

    async def telling(self) -> None:
        """Until cancelled: tell, five times a second."""
        while True:
            await asyncio.sleep(_TELL_EVERY)
            self.tell()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one service until SIGTERM; `UNAVAILABLE` where its server is away as it starts."""
    parser = argparse.ArgumentParser(prog="tidewire.cli.demo.worker")
    parser.add_argument("service", choices=sorted(SERVICES))
    parser.add_argument("--listen-on", type=int, metavar="FD", help="the open socket of the door")
    parser.add_argument("--plant", choices=PLANTS)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.CRITICAL)
    follow_parent(PATIENCE.longest)
    try:
        asyncio.run(_serve(arguments))
    except (StoreUnavailable, TransportUnavailable) as error:
        print(error, file=sys.stderr)
        return UNAVAILABLE
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    name: str = arguments.service
    settings = settings_from(directory=Path(__file__).parent)  # whatever lies where the demo is run is not for it
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    teller = Teller()
    async with (
        open_transport(settings.broker) as transport,
        open_store(settings.store) as store,
    ):
        broker, database = plant(arguments.plant or "", transport, store)
        parts = Parts(observer=teller)
        async with (
            running(SERVICES[name], transport=broker, store=database, options=OPTIONS, parts=parts) as app,
            asyncio.TaskGroup() as tasks,
        ):
            telling = tasks.create_task(teller.telling())
            sys.stdout.write('{"ready": 1}\n')
            sys.stdout.flush()
            await _until_stopped(app, database, arguments.listen_on, stopped)
            telling.cancel()
    teller.tell()


async def _until_stopped(app: Running, store: Store, listen_on: int | None, stopped: asyncio.Event) -> None:
    if listen_on is not None:
        await serve_door(Door(store, app.publisher), socket.socket(fileno=listen_on), stopped)
    else:
        await stopped.wait()


if __name__ == "__main__":
    sys.exit(main())
