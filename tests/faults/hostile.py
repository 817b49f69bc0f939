"""Hostile messages through a whole service: each is handled, skipped and counted, or a dead letter; nothing stops."""

from __future__ import annotations

import asyncio
import gc
import logging
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from fault_rounds import Round
from hostile_messages import GROUP, TOPICS, Hostile

from tidewire import Context, Options, Parts, Retry, Service, event, running
from tidewire.model import DeadChannel, Delivery, Fact, GroupSpec, TopicSpec
from tidewire.stores.memory import open_memory_store
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.memory import open_memory_transport
from tidewire.transports.sqlite import open_sqlite_transport

KINDS = ("memory", "sqlite", "memory without a store")
FINAL = ("processed", "skipped", "known", "discarded", "dead_lettered")
BATCH = 64
GROWTH_BYTES_MAX = 64 << 20
OPTIONS = Options(lease=timedelta(seconds=20), grace=timedelta(seconds=5), lanes=4)
RETRY = Retry(attempts=2, first_delay=timedelta(milliseconds=1))


class Line(msgspec.Struct):
    """A part of an order."""

    sku: str
    n: int


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """An order with one field of every kind that hurts."""

    order_id: str
    total: Decimal
    number: int = 0
    at: datetime | None = None
    note: str = ""
    lines: tuple[Line, ...] = ()


@event("shop.page.viewed")
class PageViewed:
    """Something that takes anything."""

    order_id: Any = None
    note: Any = None


class Counting:
    """An observer that counts what became of events."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def record(self, facts: Sequence[Fact]) -> None:
        """Count."""
        self.kinds.update(fact.kind for fact in facts)

    @property
    def final(self) -> int:
        """How many events have come to their end."""
        return sum(self.kinds[kind] for kind in FINAL)


class Foreign:
    """A real transport whose deliveries carry header values that are no text, as those of other producers do."""

    def __init__(self, inner: Any, source: Hostile) -> None:
        self._inner = inner
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @asynccontextmanager
    async def subscribe(self, subscription: Any) -> AsyncGenerator[Any]:
        """Join; what is received is added to."""
        async with self._inner.subscribe(subscription) as receiver:
            receive, source = receiver.receive, self._source

            async def foreign(limit: int, wait: timedelta) -> Any:
                return [
                    msgspec.structs.replace(one, foreign=source.foreign()) if isinstance(one, Delivery) else one
                    for one in await receive(limit, wait)
                ]

            receiver.receive = foreign
            yield receiver


def billing(*, store: bool) -> Service:
    """A service that writes what it was sent into its database, whatever it is."""
    service = Service(GROUP, prefetch=48)

    @service.on(OrderPlaced, on_dead_letter="continue", retry=RETRY)
    async def take(order: OrderPlaced, context: Context[Any]) -> None:
        if store:
            await _write(context.tx, (order.order_id, str(order.total), order.number, order.note))
        if len(order.note) % 7 == 2:
            raise ValueError(f"\ud800 {order.note}")

    @service.on(PageViewed, on_dead_letter="continue", retry=RETRY)
    async def see(page: PageViewed, context: Context[Any]) -> None:
        if store:
            await _write(context.tx, (repr(page.order_id), repr(page.note), 0, ""))

    return service


async def _write(tx: Any, row: tuple[Any, ...]) -> None:
    if hasattr(tx, "put"):
        await tx.put(row[0], row)
    else:
        await tx.execute("INSERT INTO seen VALUES (?, ?, ?, ?)", row)


@asynccontextmanager
async def opened(kind: str, directory: Path) -> AsyncGenerator[tuple[Any, Any]]:
    """Open a transport and a store."""
    if kind != "sqlite":
        async with open_memory_transport() as transport, open_memory_store() as store:
            yield transport, None if kind.endswith("without a store") else store
        return
    async with (
        open_sqlite_transport(directory / "broker.db") as transport,
        open_sqlite_store(directory / "store.db") as store,
    ):
        unit = store.unit()
        await unit.tx.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT, total TEXT, number INTEGER, note TEXT)")
        await (await unit.seal())
        yield transport, store


async def assault(kind: str, *, seed: int, count: int, directory: Path) -> Round:
    """Send *count* hostile messages to a service and say what became of them."""
    hostile, counting, figures = Hostile(seed), Counting(), Counter[str]()
    violations: list[str] = []
    async with opened(kind, directory) as (transport, store):
        await transport.provision([TopicSpec(name, lanes=4) for name in TOPICS], [GroupSpec(GROUP, list(TOPICS))])
        service = billing(store=store is not None)
        parts = Parts(observer=counting)
        broker = Foreign(transport, hostile)
        async with running(service, transport=broker, store=store, options=OPTIONS, parts=parts) as app:
            stored, before = 0, 0
            for _ in range(0, count, BATCH):
                receipts = await transport.publish([hostile.message() for _ in range(BATCH)])
                figures.update(f"publish: {receipt.status}" for receipt in receipts)
                stored += sum(receipt.status == "stored" for receipt in receipts)
                if not await _reached(counting, stored):
                    violations.append(f"{stored} stored, {dict(counting.kinds)} after a while")
                    break
                before = before or _resident()
                figures["most memory grown, MiB"] = max(figures["most memory grown, MiB"], (_resident() - before) >> 20)
            seen = counting.kinds["processed"]
            await app.publisher.publish(OrderPlaced(f"good-{seed}", Decimal(1)))
            if not await _reached(counting, stored + 1) or counting.kinds["processed"] == seen or not app.ready:
                violations.append("a good event behind the bad ones was not handled")
        violations += await _books(transport, counting)
    if kind == "sqlite" and figures["most memory grown, MiB"] > GROWTH_BYTES_MAX >> 20:
        violations.append(f"memory grew by {figures['most memory grown, MiB']} MiB")
    figures.update({kind: counting.kinds[kind] for kind in FINAL})
    figures["hostile messages"] = stored
    return Round(figures, [f"hostile {kind} seed {seed}: {violation}" for violation in violations])


async def _books(transport: Any, counting: Counting) -> list[str]:
    """Nothing waits, and what was given up lies in the dead channels."""
    problems: list[str] = []
    dead = 0
    for topic in TOPICS:
        stats = await transport.stats(topic, GROUP)
        dead += stats.dead
        if stats.ready or stats.in_flight or stats.delayed:
            problems.append(f"{topic}: {stats}")
        for letter in await transport.browse(DeadChannel(topic, GROUP), limit=50):
            if not letter.message.headers.get("dl-reason") or not letter.message.headers.get("dl-detail"):
                problems.append(f"{topic}: a dead letter without its reason")
    if dead != counting.kinds["dead_lettered"]:
        problems.append(f"{counting.kinds['dead_lettered']} were given up, {dead} dead letters lie there")
    return problems


async def _reached(counting: Counting, count: int) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(30):
            while counting.final < count:  # noqa: ASYNC110 - an observer is synchronous
                await asyncio.sleep(0.002)
            return counting.final == count
    return False


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def one_round(seed: int, *, count: int = 3_000) -> Round:
    """Send *count* messages to each kind of service; for `make faults`."""
    logging.disable(logging.CRITICAL)
    total = Round(Counter())
    for kind in KINDS:
        with tempfile.TemporaryDirectory(prefix="tidewire-hostile-") as directory:
            done = asyncio.run(assault(kind, seed=seed, count=count, directory=Path(directory)))
        grown = max(total.figures["most memory grown, MiB"], done.figures.pop("most memory grown, MiB", 0))
        total.figures += done.figures
        total.figures["most memory grown, MiB"] = grown
        total.violations += done.violations
        gc.collect()
    return total
