"""``tidewire demo``: a shop of five services, real processes, one broker, and the books at the end."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from tidewire.cli.demo.feeder import Feeder
from tidewire.cli.demo.orders import invented
from tidewire.cli.demo.premises import Premises, opened_premises
from tidewire.cli.demo.reconcile import QUERIES, Books, dead_ends, reconcile
from tidewire.cli.demo.shop.services import SERVICES
from tidewire.cli.demo.supervisor import Supervisor
from tidewire.cli.demo.view import View, print_books
from tidewire.cli.demo.worker import OPTIONS
from tidewire.cli.exits import INTERRUPTED
from tidewire.errors import ConfigurationError, MissingExtra, StoreUnavailable, TransportUnavailable
from tidewire.kit.groups import first_error
from tidewire.model import Change, GroupSpec, Stats, TopicSpec

__all__ = ["run"]

T = TypeVar("T")
_KILLS_MIN = 12
_KILL_EVERY = 0.9
_STILL_MAX = 75.0  # a broker with settings for production gives a dead member's lanes to others after 45 s
_SHIPPED = "orders-5000.jsonl"


def run(arguments: argparse.Namespace) -> int:
    """Run the demo: 0 if the books balance, 1 if not.

    Raises:
        ConfigurationError: the order file cannot be read, or the directory to keep is not empty.
        MissingExtra: the shop's own dependencies are not installed.
    """
    _check_extra()
    name, lines = read_lines(arguments.orders)
    directory = _directory(arguments.keep)
    try:
        report, books = asyncio.run(_until_sigterm(_run(arguments, name, lines, directory)))
    except asyncio.CancelledError:
        return INTERRUPTED
    finally:
        if arguments.keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    if arguments.json:
        print(json.dumps(report))
    else:
        print_books(books, report)
        if arguments.keep is not None:
            print(f"The databases are in {directory}")
    return 0 if report["balanced"] else 1


def read_lines(path: Path | None) -> tuple[str, list[tuple[int, bytes]]]:
    """Return the file's name and its lines that are not blank, each with its number.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    if path is None:
        text = resources.files("tidewire.cli.demo").joinpath(_SHIPPED).read_bytes()
    else:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"--orders {path}: {error.strerror}", hint="give a file of JSON lines") from error
    numbered = enumerate(text.split(b"\n"), 1)
    return (path.name if path else _SHIPPED), [(number, line.strip(b"\r")) for number, line in numbered if line.strip()]


async def _until_sigterm(running: Coroutine[Any, Any, T]) -> T:
    """Await *running*; SIGTERM cancels it, as Ctrl-C does, so that it ends what it has begun."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await running


async def _run(
    arguments: argparse.Namespace, name: str, lines: list[tuple[int, bytes]], directory: Path
) -> tuple[dict[str, Any], Books]:
    listener, loop = _listener(arguments.port), asyncio.get_running_loop()
    port = listener.getsockname()[1]
    kills = _KILLS_MIN if arguments.chaos else 0
    spread = kills * _KILL_EVERY if arguments.chaos else 0.0
    feeder = Feeder(name, lines, port=port, seconds=min(spread, arguments.seconds or spread))
    async with (
        opened_premises(directory, broker=arguments.broker, store=arguments.store) as premises,
        premises.opened() as transport,
    ):
        supervisor = Supervisor(premises, listener=listener, plant=arguments.plant or "")
        await provision(transport, fresh=premises.broker == arguments.broker)
        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = [tasks.create_task(supervisor.keep(member)) for member in supervisor.members]
                viewing = tasks.create_task(View(supervisor, feeder, len(lines)).run())
                await _or_dead(supervisor)
                print(f"the shop is open: POST http://127.0.0.1:{port}/orders", file=sys.stderr)
                started = loop.time()
                feeding = tasks.create_task(feeder.run(started + (arguments.seconds or 1e9)))
                if arguments.chaos:
                    await supervisor.chaos(random.Random(arguments.seed), kills=kills, every=_KILL_EVERY)  # noqa: S311
                await feeding
                await _come_to_rest(transport, supervisor, premises)
                seconds = loop.time() - started
                viewing.cancel()
                await supervisor.stop()
                await asyncio.wait(keeping)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:  # whatever ends this, nobody is left behind
            await supervisor.stop()
            listener.close()
        letters = await dead_ends(transport)
        found = await premises.rows(QUERIES)
    books = reconcile(found, file=feeder.name, lines=feeder.handed_in, letters=letters)
    return _report(books, supervisor, seconds), books


async def provision(transport: Any, *, fresh: bool = False) -> None:
    """Create the shop's topics and groups before anybody publishes.

    Raises:
        ConfigurationError: some are there already, and *fresh* says that none may be: what they hold is not ours.
    """
    topics: set[str] = set()
    groups: list[GroupSpec] = []
    for name, service in SERVICES.items():
        asked = sorted({handler.event.topic for handler in service.handlers})
        topics.update(asked)
        if asked:
            groups.append(GroupSpec(name, asked))
    specs = [TopicSpec(topic, lanes=OPTIONS.lanes) for topic in sorted({*topics, "shop.parcel", "shop.payment"})]
    if fresh:
        planned: Sequence[Change] = await transport.provision(specs, groups, dry_run=True)
        if there := [change.what for change in planned if change.kind != "create"]:
            raise ConfigurationError(
                f"the broker has something of a shop already: {', '.join(there)}",
                hint="delete it there if a demo has left it, or let the demo start a broker of its own",
            )
    await transport.provision(specs, groups)


async def _or_dead(supervisor: Supervisor) -> None:
    """Wait until the shop is open.

    Raises:
        ConfigurationError: a service cannot start; says what it said.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(60):
            while not supervisor.errors:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await supervisor.ready()
                        return
    raise ConfigurationError(f"the shop does not open: {'; '.join(supervisor.errors) or 'no service answers'}")


async def _come_to_rest(transport: Any, supervisor: Supervisor, premises: Premises) -> None:
    """Wait until nothing waits anywhere, twice in a row, or nothing has moved for too long."""
    now = asyncio.get_running_loop().time
    calm, last, moved_at = 0, "", now()
    while calm < 3:
        await asyncio.sleep(0.15)
        waiting = await _waiting(transport, premises)
        calm = calm + 1 if not any(waiting) and _all_up(supervisor) else 0
        state = f"{waiting} {supervisor.total('processed')} {supervisor.total('retried')}"
        if state != last:
            last, moved_at = state, now()
        elif now() - moved_at > _STILL_MAX:
            return


def _all_up(supervisor: Supervisor) -> bool:
    return all(member.ready.is_set() for member in supervisor.members.values())


async def _waiting(transport: Any, premises: Premises) -> list[int]:
    """What waits: per group at the broker, per service in its outbox; a server that is away may hold anything."""
    places = [
        (topic, name)
        for name, service in SERVICES.items()
        for topic in sorted({handler.event.topic for handler in service.handlers})
    ]
    try:
        # All at once: a broker that has come back may be slow to say who coordinates a group.
        found: list[Stats] = await asyncio.gather(*(transport.stats(topic, name) for topic, name in places))
        counts = [count or 0 for stats in found for count in (stats.ready, stats.in_flight, stats.delayed)]
        return counts + await premises.pending()
    except (StoreUnavailable, TransportUnavailable):
        return [1]


def _report(books: Books, supervisor: Supervisor, seconds: float) -> dict[str, Any]:
    """The one object that ``--json`` prints."""
    events = books.paid + books.refused + books.stock_moved + books.shipped + books.notified + books.dead_letters
    return {
        "accepted": books.accepted,
        "malformed": books.malformed,
        "repeated": books.repeated,
        "conflict": books.conflict,
        "paid": books.paid,
        "refused": books.refused,
        "stock_moved": books.stock_moved,
        "shipped": books.shipped,
        "notified": books.notified,
        "dead_letters": books.dead_letters,
        "lost": books.lost,
        "duplicated": books.duplicated,
        "out_of_order": books.out_of_order,
        "kills": supervisor.kills,
        "server_kills": supervisor.server_kills,
        "retries": supervisor.total("retried"),
        "events": events,
        "seconds": round(seconds, 2),
        "events_per_second": round(events / seconds) if seconds else 0,
        "balanced": books.balanced and not supervisor.errors,
        "problems": [*books.problems, *supervisor.errors][:50],
    }


def _directory(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="tidewire-demo-"))
    if keep.exists() and any(keep.iterdir()):
        raise ConfigurationError(f"--keep {keep}: it is not empty", hint="give a new directory")
    keep.mkdir(parents=True, exist_ok=True)
    return keep


def _listener(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=128)
    except OSError as error:
        raise ConfigurationError(f"--port {port}: {error.strerror}", hint="0 takes any free one") from error


def _check_extra() -> None:
    for module in ("starlette", "uvicorn"):
        if find_spec(module) is None:
            raise MissingExtra(
                f"tidewire demo needs {module}", hint='pip install "tidewire[demo]" brings what it needs'
            )


def write_shipped(path: Path) -> None:
    """Write the order file that is shipped."""
    path.write_bytes(b"\n".join(invented()) + b"\n")
