"""One round against a Kafka cluster whose brokers die, stand still and come back, while members come, go and die.

Publishers repeat what is not known to be stored, with the same ids, as a relay does. At the end every event must have
been settled, first occurrences of each key must have come in order, and nothing that was settled may have come again
to a member that joined later.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

from fault_rounds import NotPossible, Round
from kafka_server import KafkaServer, NoServer, private_cluster

from tidewire.errors import TidewireError
from tidewire.model import Delivery, LaneEvent, Message, Receipt
from tidewire.testing.transports import Bench, Reader, Site
from tidewire.testing.transports.bench import PATIENCE
from tidewire.testing.transports.clients import spawn_client
from tidewire.transports.kafka import open_kafka_transport

OPENER = "tidewire.transports.kafka:open_kafka_transport"
KEYS = [f"k{number}" for number in range(12)]
BATCHES, EACH = 25, 20
LONGEST = 240.0


@dataclass
class Books:
    """What happened: what is stored, every delivery in the order it came, and what is settled for certain."""

    stored: list[Message] = field(default_factory=list[Message])
    seen: list[Delivery] = field(default_factory=list[Delivery])
    settled: set[str] = field(default_factory=set[str])
    again: list[str] = field(default_factory=list[str])
    figures: Counter[str] = field(default_factory=Counter[str])


def one_round(seed: int) -> Round:
    """Run the cluster, the storm and the checks.

    Raises:
        NotPossible: there is no Java, or Kafka cannot be fetched.
    """
    try:
        with private_cluster() as brokers:
            books = asyncio.run(_storm(brokers, random.Random(seed)))
    except NoServer as error:
        raise NotPossible(str(error)) from error
    return Round(books.figures, [f"seed {seed}: {violation}" for violation in judged(books)])


def judged(books: Books) -> list[str]:
    """Return what must not have happened."""
    wrong = [f"{one.id} was stored and never settled" for one in books.stored if one.id not in books.settled]
    wrong += [f"{id_} came again to a member that joined after it was settled" for id_ in books.again]
    first: dict[str, str | None] = {}
    for one in books.seen:
        first.setdefault(one.message.id, one.message.key)
    for key in KEYS:
        published = [one.id for one in books.stored if one.key == key]
        came = [id_ for id_, other in first.items() if other == key and id_ in set(published)]
        if came != published[: len(came)] and came != published:
            wrong.append(f"{key}: first occurrences came in another order than they were stored")
    return wrong


async def _storm(brokers: Sequence[KafkaServer], chance: random.Random) -> Books:
    PATIENCE.set(60.0)
    books = Books()
    url = f"kafka://{','.join(one.address for one in brokers)}?timeout=4&replication=3"
    async with asyncio.timeout(LONGEST), AsyncExitStack() as stack:
        site = Site(open=lambda: open_kafka_transport(url))
        bench = Bench(site, await stack.enter_async_context(site.open()), stack)
        await bench.provision(lanes=6)
        published = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_publish(bench, books, published))
            weather = tasks.create_task(_weather(brokers, chance, books))
            for number in range(3):
                tasks.create_task(_members(bench, books, published, chance=random.Random(chance.random() + number)))
            tasks.create_task(_victims(bench, url, books, published=published, chance=chance))
            await published.wait()
            weather.cancel()
        for one in brokers:  # whoever was down or stood still when the weather ended
            _up(one)
    books.figures["events through faults"] = len(books.stored)
    books.figures["deliveries"] = len(books.seen)
    return books


async def _publish(bench: Bench, books: Books, published: asyncio.Event) -> None:
    """Publish batch after batch, each until all of it is stored."""
    for _ in range(BATCHES):
        rest = bench.messages(EACH, keys=KEYS)
        books.stored += rest
        while rest:
            receipts = await _or_nothing(bench.transport.publish(rest))
            known = dict(zip((one.id for one in rest), receipts, strict=False))
            # What follows an unknown one of its key goes again behind it: the first occurrences keep their order.
            rest = [one for one in rest if one.id not in known or not known[one.id].ok]
            books.figures["publishes repeated"] += bool(rest)
            await asyncio.sleep(0.05 if rest else 0.1)
    published.set()


async def _or_nothing(publishing: Awaitable[Sequence[Receipt]]) -> Sequence[Receipt]:
    try:
        return await publishing
    except TidewireError:
        return ()


async def _weather(brokers: Sequence[KafkaServer], chance: random.Random, books: Books) -> None:
    """Until cancelled: kill a broker and start it again, or let it stand still for a while."""
    while True:
        await asyncio.sleep(chance.uniform(0.5, 2.0))
        one = chance.choice(brokers)
        if chance.random() < 0.5:
            books.figures["brokers killed"] += 1
            one.kill()
            await asyncio.sleep(chance.uniform(0.5, 3.0))
            one.start(wait=False)
            await asyncio.sleep(6.0)
        else:
            books.figures["brokers paused"] += 1
            one.pause()
            await asyncio.sleep(chance.uniform(1.0, 5.0))
            one.resume()


def _up(broker: KafkaServer) -> None:
    with suppress(AssertionError):
        broker.resume()
        return
    broker.start(wait=False)


async def _members(bench: Bench, books: Books, published: asyncio.Event, *, chance: random.Random) -> None:
    """Until everything is settled: be a member for a while, settle, leave, and join again."""
    while not (published.is_set() and {one.id for one in books.stored} <= books.settled):
        before = set(books.settled)
        with suppress(TidewireError):
            async with bench.site.open() as transport, transport.subscribe(bench.subscription(prefetch=40)) as receiver:
                books.figures["memberships"] += 1
                await _work(Reader(receiver), books, before, chance=chance)


async def _work(reader: Reader, books: Books, before: set[str], *, chance: random.Random) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + chance.uniform(1.0, 8.0)
    while loop.time() < end:
        found = await reader.poll(20, 0.2)
        books.seen += found
        books.again += [one.message.id for one in found if one.message.id in before]
        settlements = await reader.receiver.settle(ack=found)
        books.settled |= {one.delivery.message.id for one in settlements if one.status == "settled"}
        reader.unsettled.clear()


async def _victims(bench: Bench, url: str, books: Books, *, published: asyncio.Event, chance: random.Random) -> None:
    """Until all is published: join in a process of its own, take something, and be killed with it in hand."""
    while not published.is_set():
        async with spawn_client(OPENER, url) as client:
            with suppress(TidewireError, AssertionError):
                await client.join(bench.subscription(prefetch=10))
                for _ in range(chance.randrange(1, 6)):
                    found = await client.receive(5, timedelta(seconds=0.5))
                    books.seen += [one for one in found if not isinstance(one, LaneEvent)]
            books.figures["members killed"] += 1
            await client.kill()
