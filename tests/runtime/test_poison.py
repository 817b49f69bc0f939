"""Events that nothing can be done about: those that kill the process, and those whose answer nobody will take."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from runtime_world import Opened, OrderPlaced, PageViewed, World

from tidewire import Context, Options, Reject, Retry, Service
from tidewire.model import DeadChannel, Message, Topic
from tidewire.rules.letters import redriven
from tidewire.transports.sqlite import open_sqlite_transport

KILLER = """
import os, pathlib, signal
from tidewire import Context, Service, event

@event("shop.order.placed", key="order_id")
class OrderPlaced:
    order_id: str

killer = Service("killer", prefetch=50)

@killer.on(OrderPlaced, on_dead_letter="continue")
async def take(order: OrderPlaced, context: Context) -> None:
    if order.order_id == "bad":
        with open("starts", "a") as starts:
            starts.write(f"{context.attempt}\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    await context.tx.execute("create table if not exists handled (order_id text)")
    await context.tx.execute("insert into handled values (?)", (order.order_id,))
"""
PUBLISH = """
import asyncio
from tidewire import open_publisher
from tidewire.config import open_transport
from twkiller import OrderPlaced

async def main():
    async with open_transport("sqlite:///broker.db") as broker, open_publisher("shop", transport=broker) as publisher:
        names = [str(number) for number in range(20)]
        await publisher.publish_all([OrderPlaced(order_id=name) for name in [*names[:10], "bad", *names[10:]]])

asyncio.run(main())
"""


def test_an_event_that_kills_the_process_is_a_dead_letter_after_three_starts(tmp_path: Path) -> None:
    """RT3, IX-15: three starts of a suspect without an end are enough; innocents are handled, each once."""
    (tmp_path / "twkiller.py").write_text(KILLER)
    options = ["--broker", "sqlite:///broker.db", "--store", "sqlite:///store.db", "--provision"]
    command = [sys.executable, "-m", "tidewire.cli", "run", "twkiller:killer", *options]
    environment = {**os.environ, "TIDEWIRE_LEASE": "0.5"}
    subprocess.run([sys.executable, "-c", PUBLISH], cwd=tmp_path, check=True, timeout=60)
    for _ in range(4):
        done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=60, check=False, capture_output=True)
        assert -signal.SIGKILL == done.returncode
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    letters = asyncio.run(_letters(tmp_path))
    process.terminate()
    assert 0 == process.wait(timeout=30)
    assert [("bad", "poison")] == letters
    assert ["1", "2", "3", "4"] == (tmp_path / "starts").read_text().split()
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        handled = [row[0] for row in connection.execute("SELECT order_id FROM handled")]
    assert sorted(map(str, range(20))) == sorted(handled)


async def _letters(directory: Path) -> list[tuple[str, str]]:
    """Wait until everything is settled and return key and reason of the dead letters."""
    async with open_sqlite_transport(directory / "broker.db") as broker, asyncio.timeout(30):
        while True:
            stats = await broker.stats("shop.order", "killer")
            if not stats.ready and not stats.in_flight:
                break
            await asyncio.sleep(0.05)
        letters = await broker.browse(DeadChannel("shop.order", "killer"))
        return [(letter.message.key or "", letter.message.headers["dl-reason"]) for letter in letters]


def test_an_answer_that_the_broker_will_never_take_is_its_handlers_failure(opened: Opened) -> None:
    """Without a store, where it is moved with its cause: retried, then a dead letter that says why; others go on."""
    service = Service("billing")

    @service.on(PageViewed, retry=Retry(attempts=2, first_delay=timedelta(milliseconds=1)))
    async def view(page: PageViewed) -> OrderPlaced:
        return OrderPlaced(str(page.number), note="x" * (0 if page.number else 3_000_000))

    async def scenario() -> None:
        async with opened() as world, world.running(service, store=False) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(10)])
            await world.until(lambda: world.settled("shop.page", "billing"), seconds=30)
            (letter,) = await world.dead("shop.page", "billing")
            assert "exhausted" == letter.message.headers["dl-reason"]
            assert "too_large" in letter.message.headers["dl-last-error"]
            assert 9 == sum(fact.kind == "published" and fact.topic == "shop.order" for fact in world.observer.facts)

    asyncio.run(scenario())


def test_a_held_event_does_not_grow_the_books_without_end(opened: Opened) -> None:
    """What passes a held key is remembered until the key moves, so it is moved when that has become too much."""
    service, seen = Service("billing", prefetch=16), list[str]()

    @service.on(OrderPlaced, retry=Retry(attempts=3, first_delay=timedelta(seconds=600), factor=1.0))
    async def take(order: OrderPlaced) -> None:
        seen.append(order.order_id)
        if order.order_id == "bad":
            raise RuntimeError("not yet")

    async def scenario() -> None:
        async with opened() as world:
            world.options = Options(lease=timedelta(seconds=5), grace=timedelta(seconds=1), lanes=1)
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("bad"))
                await world.until(lambda: seen == ["bad"])
                await app.publisher.publish_all([OrderPlaced(str(number)) for number in range(2_500)])
                await world.until(lambda: len(seen) == 2_501, seconds=40)
                await world.until(lambda: _delayed(world), seconds=20)
                await app.publisher.publish(OrderPlaced("bad", number=2))
                await app.publisher.publish(OrderPlaced("last"))
                await world.until(lambda: "last" in seen)
                rows = await world.store.held.keys("billing", ["shop.order"])
                assert [("shop.order", "bad")] == list(rows), "what follows it waits behind it, in order"

    asyncio.run(scenario())


async def _delayed(world: World) -> bool:
    stats = await world.transport.stats("shop.order", "billing")
    return stats.delayed == 1


def test_a_structured_event_is_kept_as_it_came(opened: Opened) -> None:
    """Promise 5 for structured mode: the dead letter has the document and its headers, the event's id, and redrives."""
    service, seen = Service("billing"), list[str]()
    mended = asyncio.Event()
    document = (
        b'{ "specversion":"1.0", "id":"e-1", "source":"web", "type":"shop.order.placed", "partitionkey":"o-1",'
        b' "time":"2026-11-24T09:30:00Z", "data": {"order_id":"o-1"} }'
    )

    @service.on(OrderPlaced, on_dead_letter="continue")
    async def take(order: OrderPlaced, context: Context) -> None:
        if not mended.is_set():
            raise Reject("not now")
        seen.append(f"{context.envelope.source} {order.order_id}")

    async def scenario() -> None:
        async with opened() as world, world.running(service):
            headers = {"content-type": "application/cloudevents+json", "x-from": "elsewhere"}
            await world.transport.publish([Message(Topic("shop.order"), "", "", None, headers, document)])
            await world.until(lambda: world.observer.count("dead_lettered") == 1)
            await world.until(lambda: world.settled("shop.order", "billing"))
            (letter,) = await world.dead("shop.order", "billing")
            message = letter.message
            assert (document, "e-1", "web", "o-1") == (message.body, message.id, message.source, message.key)
            assert headers.items() <= message.headers.items()
            mended.set()
            await world.transport.publish([redriven(message)])
            await world.until(lambda: seen == ["web o-1"])

    asyncio.run(scenario())


def test_what_is_no_cloudevent_is_a_dead_letter_at_once(opened: Opened) -> None:
    """Without an id or a source, or with a time that is none, no retry helps: it holds nobody up, and two without an id
    are not taken for one event."""
    service, seen = Service("billing"), list[str]()

    @service.on(OrderPlaced, on_dead_letter="continue")
    async def take(order: OrderPlaced, context: Context) -> None:
        seen.append(f"{context.envelope.id} {order.order_id}")

    def foreign(id_: str, order_id: str, **attributes: str) -> Message:
        headers = {"ce-type": "shop.order.placed", "ce-source": "web", **({"ce-id": id_} if id_ else {})}
        headers |= {f"ce-{name}": value for name, value in attributes.items()}
        body = f'{{"order_id": "{order_id}"}}'.encode()
        return Message(Topic("shop.order"), id_, headers["ce-source"], "k", headers, body)

    async def scenario() -> None:
        async with opened() as world, world.running(service):
            await world.transport.publish(
                [
                    *(foreign("", "1"), foreign("", "1"), foreign("", "2"), foreign("e-1", "3", source="")),
                    *(foreign("e-2", "4", time="yesterday"), foreign("e-3", "5")),
                ]
            )
            await world.until(lambda: seen == ["e-3 5"])
            await world.until(lambda: world.settled("shop.order", "billing"))
            letters = [one.message for one in await world.dead("shop.order", "billing")]
            assert ["undecodable"] * 5 == [letter.headers["dl-reason"] for letter in letters]
            assert ["", "", "", "e-1", "e-2"] == [letter.id for letter in letters]
            assert 0 == world.observer.count("retried")

    asyncio.run(scenario())
