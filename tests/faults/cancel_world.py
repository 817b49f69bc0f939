"""Every public coroutine, with what must be true when it has been cancelled anywhere."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from tidewire import Emitter, Options, Service, event, open_publisher, running, transaction
from tidewire.model import (
    ZERO,
    Act,
    DeadChannel,
    Delivery,
    Failure,
    GroupSpec,
    Held,
    InboxChannel,
    Mark,
    Message,
    Move,
    Release,
    Subscription,
    Topic,
    TopicSpec,
)
from tidewire.operations.audit import Operator
from tidewire.operations.letter_files import export_letters, import_letters
from tidewire.operations.redrive import discard, plan_letters, redrive
from tidewire.operations.replays import replay
from tidewire.operations.selection import Selection
from tidewire.runtime.serve import relay_once
from tidewire.stores.memory import open_memory_store
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.memory import open_memory_transport
from tidewire.transports.sqlite import open_sqlite_transport

TOPIC, GROUP, IDLE = "shop.order", "billing", "idle"
SOON, LONG = timedelta(milliseconds=5), timedelta(seconds=30)
OPTIONS = Options(lease=LONG, grace=timedelta(seconds=2), lanes=1)
DEAD = DeadChannel(TOPIC, GROUP)


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """An order."""

    order_id: str


def message(event_id: str, *, to: Any = None, key: str | None = None) -> Message:
    """Return a message."""
    headers = {"ce-id": event_id, "ce-source": "test", "ce-type": "shop.order.placed"}
    return Message(to or Topic(TOPIC), event_id, "test", key, headers, b'{"order_id":"1"}')


@dataclass
class World:
    """A transport and a store of one kind, a publisher, and one member that receives."""

    kind: str
    directory: Path
    transport: Any
    store: Any
    publisher: Any
    receiver: Any
    seen: list[str] = field(default_factory=list)
    numbers: int = 0

    async def delivery(self) -> Delivery:
        """Publish one more message and receive it."""
        self.numbers += 1
        await self.transport.publish([message(f"delivery-{self.numbers}")])
        while True:
            for one in await self.receiver.receive(1, LONG):
                if isinstance(one, Delivery):
                    return one

    async def usable(self) -> None:
        """Everything still works: publish, receive, settle, a unit, the outbox."""
        delivery = await self.delivery()
        (settlement,) = await self.receiver.settle(ack=[delivery])
        assert settlement.status == "settled"
        async with transaction(self.store) as tx:
            await self.put(tx, f"usable-{self.numbers}")
        assert await self.has(f"usable-{self.numbers}")

    async def put(self, tx: Any, name: str) -> None:
        """Write a row of the user's."""
        if hasattr(tx, "put"):
            await tx.put(name, True)
        else:
            await tx.execute("INSERT INTO named VALUES (?)", (name,))

    async def has(self, name: str) -> bool:
        """Whether a row is there."""
        unit = self.store.unit()
        if hasattr(unit.tx, "put"):
            found = bool(await unit.tx.get(name))
        else:
            found = await unit.tx.fetchval("SELECT count(*) FROM named WHERE name = ?", (name,)) > 0
        await unit.rollback()
        return found

    async def ids(self, address: Any) -> list[str]:
        """Return what lies at an address."""
        return [one.message.id for one in await self.transport.browse(address, limit=100_000)]


async def open_world(kind: str, directory: Path, stack: AsyncExitStack) -> World:
    """Open a world of one *kind*; *stack* closes it."""
    enter = stack.enter_async_context
    if kind == "memory":
        transport, store = await enter(open_memory_transport()), await enter(open_memory_store())
    else:
        transport = await enter(open_sqlite_transport(directory / "broker.db"))
        store = await enter(open_sqlite_store(directory / "store.db", poll=SOON))
        async with transaction(store) as tx:
            await tx.execute("CREATE TABLE named (name TEXT)")
    groups = [GroupSpec(GROUP, [TOPIC]), GroupSpec(IDLE, [TOPIC])]
    await transport.provision([TopicSpec(TOPIC, lanes=1)], groups)
    options = msgspec.structs.replace(OPTIONS, relay=False)
    publisher = await enter(open_publisher("test", transport=transport, store=store, options=options))
    subscription = Subscription(GROUP, [TOPIC], "member", ordering="none", lease=LONG, grace=SOON)
    receiver = await enter(transport.subscribe(subscription))
    return World(kind, directory, transport, store, publisher, receiver)


# --- what is cancelled: a name, the coroutine, and what must hold after -------------------------------------------

Case = Callable[[World, int], Coroutine[Any, Any, Any]]
Look = Callable[[World, int], Coroutine[Any, Any, None]]
CASES: dict[str, tuple[Case, Look | None]] = {}


def case(look: Look | None = None) -> Callable[[Case], Case]:
    """Register a case under its function's name."""

    def register(function: Case) -> Case:
        CASES[function.__name__] = function, look
        return function

    return register


async def _whole_batch(world: World, number: int) -> None:
    """A batch is stored as a whole or not at all."""
    found = set(await world.ids(Topic(TOPIC))) & {f"batch-{number}-{part}" for part in range(3)}
    assert len(found) in (0, 3), found


@case(_whole_batch)
async def publish(world: World, number: int) -> None:
    await world.transport.publish([message(f"batch-{number}-{part}") for part in range(3)])


@case()
async def provision(world: World, number: int) -> None:
    name = f"shop.more{number}"
    await world.transport.provision([TopicSpec(name, lanes=2)], [GroupSpec("more", [name])])
    await world.transport.provision([TopicSpec(name, lanes=2)], [GroupSpec("more", [name])], dry_run=True)


@case()
async def subscribe(world: World, number: int) -> None:
    subscription = Subscription("visitors", [TOPIC], f"visitor-{number}", ordering="key", lease=LONG, grace=SOON)
    async with world.transport.subscribe(subscription) as receiver:
        await receiver.receive(0, SOON)
        await receiver.steer(pause=["0"], resume=["0"])


async def _nothing_hidden(world: World, number: int) -> None:
    """What a cancelled receive had in its hands is handed out again: nothing is lost, nothing counted."""
    await world.transport.publish([message(f"behind-{number}")])  # behind what may still be on its way
    wanted = {f"received-{number}", f"behind-{number}"} & set(await world.ids(Topic(TOPIC)))
    while wanted:
        found = [one for one in await world.receiver.receive(10, LONG) if isinstance(one, Delivery)]
        assert {1} >= {one.attempt for one in found}
        wanted -= {one.message.id for one in found}
        await world.receiver.settle(ack=found)


@case(_nothing_hidden)
async def receive(world: World, number: int) -> None:
    await world.transport.publish([message(f"received-{number}")])
    for one in await world.receiver.receive(10, SOON):
        if isinstance(one, Delivery):  # what was returned is ours: give it back, so that the look finds it
            await world.receiver.settle(release=[Release(one, counted=False)])


async def _here_or_there(world: World, number: int) -> None:
    """A move is done or not: the delivery is unsettled, or its letter is in the dead channel; never neither."""
    dead = (await world.ids(DEAD)).count(f"moved-{number}")
    assert dead <= 1
    items = await world.receiver.receive(10, SOON)
    again = [one for one in items if isinstance(one, Delivery)]
    await world.receiver.settle(ack=again)


@case(_here_or_there)
async def settle(world: World, number: int) -> None:
    first, second, third = [await world.delivery() for _ in range(3)]
    letter = message(f"moved-{number}", to=DEAD)
    await world.receiver.settle(ack=[first], release=[Release(second, ZERO)], move=[Move(third, [letter])])


@case()
async def look(world: World, number: int) -> None:
    transport = world.transport
    await transport.topics()
    await transport.groups()
    await transport.groups(TOPIC)
    await transport.stats(TOPIC, GROUP)
    await transport.browse(Topic(TOPIC), limit=3)
    await transport.find(f"batch-{number}")
    await transport.related("nobody")
    await transport.note(Act(id=str(number), at=1, who="me", verb="look"))
    await transport.acts()
    await transport.seek(TOPIC, IDLE, to=1)


@case()
async def remove(world: World, number: int) -> None:
    await world.transport.publish([message(f"removed-{number}", to=DEAD)])
    letters = await world.transport.browse(DEAD, limit=1)
    await world.transport.remove(DEAD, [letters[0].position])


async def _unit_is_whole(world: World, number: int) -> None:
    """The user's row, the inbox mark and the event are one: all or none."""
    row = await world.has(f"unit-{number}")  # its turn comes behind a commit that is on its way
    digest = (await world.store.inbox.known([Mark(GROUP, "h", 0, "test", f"unit-{number}")]))[0]
    assert row == (digest is not None)
    assert (await world.store.outbox.count())[0] >= row


@case(_unit_is_whole)
async def unit(world: World, number: int) -> None:
    one = world.store.unit(label="cancelled")
    try:
        await world.put(one.tx, f"unit-{number}")
        await world.store.inbox.mark(one, Mark(GROUP, "h", 0, "test", f"unit-{number}"), b"d")
        await world.store.outbox.put(one, [message(f"follows-{number}")])
    except BaseException:
        await one.rollback()
        raise
    await (await one.seal())


async def _transaction_is_whole(world: World, number: int) -> None:
    assert isinstance(await world.has(f"tx-{number}"), bool)


@case(_transaction_is_whole)
async def publish_in_a_transaction(world: World, number: int) -> None:
    async with transaction(world.store) as tx:
        await world.put(tx, f"tx-{number}")
        await world.publisher.publish(OrderPlaced("1"), tx=tx)
        await world.publisher.publish_all([OrderPlaced("1"), OrderPlaced("2")], tx=tx)


@case()
async def publish_straight(world: World, number: int) -> None:
    await world.publisher.publish(OrderPlaced("1"), id=f"straight-{number}")
    await world.publisher.publish_all([OrderPlaced("1"), OrderPlaced("2")])


@case()
async def backlog(world: World, number: int) -> None:
    store, owner = world.store, f"owner-{number}"
    await store.backlog.lease(owner, timedelta(milliseconds=1))
    await store.backlog.lease("relay", LONG)
    rows = await store.backlog.claim("relay", after=0, limit=5)
    if rows:
        await store.backlog.refused("relay", rows[0].row, detail="no", attempts_max=1)
    await store.backlog.done("relay", [row.row for row in rows[1:]])
    await store.outbox.wait(SOON)
    await store.outbox.count()
    await store.outbox.requeue([one.row for one in await store.outbox.stuck()])
    await store.backlog.lease("relay", ZERO)


@case()
async def records(world: World, number: int) -> None:
    store, name = world.store, f"e{number}"
    await store.attempts.begin(GROUP, "test", name)
    await store.attempts.fail(GROUP, "test", name, Failure(failures=1))
    await store.attempts.get(GROUP, "test", name)
    await store.attempts.forget(GROUP, "test", name)
    rows = await store.held.put([Held(GROUP, TOPIC, name, "test", name, "dead")])
    await store.held.keys(GROUP, [TOPIC])
    await store.held.head(GROUP, TOPIC, name)
    await store.held.free(rows)
    await store.lanes.adopt(GROUP, f"lane-{number}", number)
    await store.inbox.run_of(GROUP)
    await store.inbox.next_run("another")
    await store.inbox.prune(1, 10)
    due, mine = await store.timetable.claim(name, "rule", first=1, now=2, owner="me", lease=LONG)
    if mine:
        one = store.unit()
        try:
            await store.timetable.advance(one, name, owner="me", due=due, to=9)
        except BaseException:
            await one.rollback()
            raise
        await (await one.seal())


@case()
async def run_a_service(world: World, number: int) -> None:
    service = Service("visitor")

    @service.on(OrderPlaced)
    async def see(order: OrderPlaced) -> None:
        world.seen.append(order.order_id)

    async with running(service, transport=world.transport, store=world.store, options=OPTIONS) as app:
        await app.publisher.publish(OrderPlaced(f"run-{number}"))


@case()
async def relay(world: World, number: int) -> None:
    await publish_in_a_transaction(world, 10**6 + number)
    await relay_once(world.store, world.transport, owner=f"relay-{number}", longest=LONG)


@case()
async def emitter(world: World, number: int) -> None:
    emitter = Emitter()

    async def listener(value: int) -> None:
        async with transaction(world.store) as tx:
            await world.put(tx, f"emitted-{number}")

    emitter.on("saved", listener)
    await emitter.emit("saved", 1)
    assert [listener] == emitter.listeners("saved")


async def _letters_conserved(world: World, number: int) -> None:
    """A dead letter is in the dead channel, or given back to its group; never nowhere."""
    places = [*await world.ids(DEAD), *await world.ids(InboxChannel(TOPIC, GROUP))]
    seen = {one.message.id for one in await world.receiver.receive(100, SOON) if isinstance(one, Delivery)}
    assert f"letter-{number}" in {*places, *seen} or number not in _lettered
    _lettered.discard(number)


_lettered: set[int] = set()


@case(_letters_conserved)
async def redrive_letters(world: World, number: int) -> None:
    operator = Operator(who="me")
    await world.transport.publish([message(f"letter-{number}", to=DEAD)])
    _lettered.add(number)
    plan = await plan_letters(world.transport, Selection(ids=(f"letter-{number}",)), now=operator.clock.now_us())
    await redrive(world.transport, plan, by=operator)


@case()
async def files_and_discards(world: World, number: int) -> None:
    operator, path = Operator(who="me"), world.directory / f"letters-{number}.jsonl"
    await world.transport.publish([message(f"given-up-{number}", to=DEAD)])
    selection = Selection(ids=(f"given-up-{number}",))
    await export_letters(world.transport, selection, path)
    await import_letters(world.transport, path, by=operator)
    plan = await plan_letters(world.transport, selection, now=operator.clock.now_us())
    await discard(world.transport, plan, by=operator, reason="a test")
    await replay(world.transport, TOPIC, IDLE, to=1)


@case()
async def open_and_close(world: World, number: int) -> None:
    if world.kind == "memory":
        async with open_memory_transport(), open_memory_store():
            return
    place = world.directory / f"fresh-{number % 3}"
    async with open_sqlite_transport(place / "broker.db") as broker, open_sqlite_store(place / "store.db") as store:
        await broker.provision([TopicSpec(TOPIC)], [])
        await store.outbox.count()
