"""What every conformance test stands on: a broker of its own, names nobody else uses, and a member that plays fair."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Protocol, TypeVar, runtime_checkable
from unittest import SkipTest

import msgspec

from tidewire.chance import UUID7Ids
from tidewire.clock import SystemClock
from tidewire.model import (
    Address,
    Capabilities,
    DeadChannel,
    Delivery,
    GroupSpec,
    InboxChannel,
    LaneEvent,
    Message,
    Move,
    Release,
    Settlement,
    Stats,
    Subscription,
    Topic,
    TopicSpec,
)
from tidewire.protocols import Finder, Inspector, Ledger, Receiver, Transport
from tidewire.testing.transports.clients import Client
from tidewire.testing.transports.raising import raises

__all__ = [
    "CALM",
    "LEASE",
    "PATIENCE",
    "Bench",
    "Binding",
    "Faults",
    "Reader",
    "Site",
    "bodies",
    "by_key",
    "consume_all",
    "demand_key_order",
    "eventually",
    "ids",
    "raises",
    "spread",
]

_Act = TypeVar("_Act")

LEASE = timedelta(milliseconds=400)
GRACE = timedelta(milliseconds=100)
CALM = timedelta(seconds=5)
"""Lease and grace of a member that is not to lose anything: a busy machine may keep it from running for a while."""
PATIENCE: ContextVar[float] = ContextVar("PATIENCE")
"""Seconds within which what must happen has happened; set from the site, for the length of a case."""


class Binding(Protocol):
    """A broker's official CloudEvents binding, in somebody else's code: headers are spelled as ours (``ce-id`` …)."""

    async def write(self, topic: str, *, headers: Mapping[str, str], body: bytes) -> None:
        """Write one event to the broker's object of a topic."""
        ...

    async def read(self, topic: str) -> tuple[Mapping[str, str], bytes]:
        """Read the newest event of a topic."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What the test environment can do to a broker and its clients. What is None is not proven.

    *spawn* starts a client that can be killed and paused. *restart* kills the broker and starts it again; when
    it is called, every client of the test is gone. *shift* moves the broker's wall clock. *cut* ends every
    connection; clients may connect again at once. While the block of *hang* lasts the broker answers nobody, as
    after SIGSTOP; while that of *outage* lasts there is none. *refuse* lets the broker refuse the message with
    this id once. *move_leader* moves whatever leads the topics. *destroy* deletes a topic behind our back.
    *forget* lets the broker ignore the settings of what is created next. *stranger* is a client that may not
    come in, *limited* one that may create nothing. *binding* is the broker's official CloudEvents binding.
    """

    spawn: Callable[[], AbstractAsyncContextManager[Client]] | None = None
    restart: Callable[[], Awaitable[None]] | None = None
    shift: Callable[[timedelta], None] | None = None
    cut: Callable[[], Coroutine[object, None, None]] | None = None
    hang: Callable[[], AbstractAsyncContextManager[None]] | None = None
    outage: Callable[[], AbstractAsyncContextManager[None]] | None = None
    refuse: Callable[[str], None] | None = None
    move_leader: Callable[[], Awaitable[None]] | None = None
    destroy: Callable[[str], Awaitable[None]] | None = None
    forget: Callable[[], None] | None = None
    stranger: Callable[[], AbstractAsyncContextManager[Transport]] | None = None
    limited: Callable[[], AbstractAsyncContextManager[Transport]] | None = None
    binding: Binding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One broker, empty or shared: *open* makes another client of it each time.

    *patience* is how many seconds what must happen may take; only a case that fails waits so long. *apart*
    returns a site that a second event loop in another thread may use at the same time; without it, this one may
    be used so. *soak* is how long the soak test may take (CF-124 asks for half an hour each night); None: not at all.
    """

    open: Callable[[], AbstractAsyncContextManager[Transport]]
    faults: Faults = Faults()  # frozen
    patience: float = 8.0
    apart: Callable[[], Site] | None = None
    soak: timedelta | None = None

    def elsewhere(self) -> Site:
        """Return a site for another event loop."""
        return self if self.apart is None else self.apart()


@runtime_checkable
class _Inspecting(Inspector, Protocol):
    """What `isinstance` can see of an `Inspector`."""


@runtime_checkable
class _Finding(Finder, Protocol):
    """What `isinstance` can see of a `Finder`."""


@runtime_checkable
class _Keeping(Ledger, Protocol):
    """What `isinstance` can see of a `Ledger`."""


class Bench:
    """One test's place at a site: the first client is open, all names and ids are this test's own."""

    def __init__(self, site: Site, transport: Transport, stack: AsyncExitStack) -> None:
        self.site = site
        self.transport = transport
        self._stack = stack
        self._space = "t" + UUID7Ids().event_id().replace("-", "")[-12:]
        self._numbers = count()
        self.journal: list[Delivery] = []  # every delivery to a member of this bench, in the order they came
        self.topic = self.name("orders")

    # --- names and values -------------------------------------------------------------------------------------

    def name(self, word: str) -> str:
        """Return *word* as a name that no other test uses."""
        return f"{self._space}.{word}"

    def dead(self, group: str = "billing") -> DeadChannel:
        """Return the dead channel of a group of the bench's topic."""
        return DeadChannel(self.topic, self.name(group))

    def inbox(self, group: str = "billing") -> InboxChannel:
        """Return the inbox channel of a group of the bench's topic."""
        return InboxChannel(self.topic, self.name(group))

    def messages(
        self, number: int, *, keys: Sequence[str | None] = ("k",), to: Address | None = None, due: int | None = None
    ) -> list[Message]:
        """Return new messages, their keys taken in turn; their bodies count up from 0 in each call."""
        return [
            Message(
                Topic(self.topic) if to is None else to,
                f"{self._space}-{next(self._numbers)}",
                "suite",
                keys[index % len(keys)],
                {"ce-type": "suite.tested", "content-type": "text/plain"},
                str(index).encode(),
                due,
            )
            for index in range(number)
        ]

    def subscription(self, group: str = "billing", *, prefetch: int = 256) -> Subscription:
        """Return a subscription of a new member to the bench's topic; ordered if the broker can."""
        return Subscription(
            self.name(group),
            [self.topic],
            f"{self._space}-member-{next(self._numbers)}",
            ordering="key" if self.capabilities.order else "none",
            prefetch=prefetch,
            lease=LEASE,
            grace=GRACE,
        )

    def calm(self, group: str = "billing", *, prefetch: int = 256) -> Subscription:
        """Return the same of a member that stays with what it has until it gives it back."""
        return msgspec.structs.replace(self.subscription(group, prefetch=prefetch), lease=CALM, grace=CALM)

    def now_us(self) -> int:
        """Return the wall time in microseconds since 1970."""
        return SystemClock().now_us()

    # --- what the broker can ----------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """What the transport declares."""
        return self.transport.capabilities

    @property
    def inspector(self) -> Inspector:
        """The transport, as one that can be looked into; skips the test if it cannot."""
        transport: object = self.transport
        if not isinstance(transport, _Inspecting):
            raise SkipTest("capability inspector is false")
        return transport

    @property
    def finder(self) -> Finder:
        """The transport, as one that finds messages by their id; skips the test if it cannot."""
        transport: object = self.transport
        if not isinstance(transport, _Finding):
            raise SkipTest("capability finder is false")
        return transport

    @property
    def ledger(self) -> Ledger:
        """The transport, as one that keeps an audit; skips the test if it cannot."""
        transport: object = self.transport
        if not isinstance(transport, _Keeping):
            raise SkipTest("capability ledger is false")
        return transport

    def need(self, **capabilities: bool) -> None:
        """Skip unless each named property of the capabilities is true; the text names the one that is not."""
        for name, holds in capabilities.items():
            if not holds:
                raise SkipTest(f"capability {name} is {getattr(self.capabilities, name)}")

    async def stats(self, group: str = "billing") -> Stats:
        """Return the counts of the bench's topic."""
        return await self.inspector.stats(self.topic, self.name(group))

    def fault(self, name: str, act: _Act | None) -> _Act:
        """Return *act*, or skip: the site cannot do what the test needs."""
        if act is None:
            raise SkipTest(f"not proven: needs fault f:{name}")
        return act

    # --- clients ----------------------------------------------------------------------------------------------

    async def open(self) -> Transport:
        """Return another client of the same broker, closed at the end of the test."""
        return await self._stack.enter_async_context(self.site.open())

    async def spawn(self) -> Client:
        """Return a client that can be killed and paused."""
        return await self._stack.enter_async_context(self.fault("kill", self.site.faults.spawn)())

    async def restart(self) -> None:
        """Close every client, kill the broker, start it and open the first client again."""
        restart = self.fault("restart", self.site.faults.restart)
        await self._stack.aclose()
        await restart()
        self.transport = await self._stack.enter_async_context(self.site.open())

    async def provision(
        self, *groups: str, lanes: int = 4, retention: timedelta | None = timedelta(days=7), cap: int | None = None
    ) -> None:
        """Make the bench's topic and groups (default: one, "billing")."""
        changes = await self.transport.provision(
            [TopicSpec(self.topic, lanes, retention, cap)],
            [GroupSpec(self.name(group), [self.topic]) for group in groups or ("billing",)],
        )
        conflicts = [change for change in changes if change.kind == "conflict"]
        assert conflicts == [], f"nothing of this name existed before: {conflicts}"

    async def publish(self, messages: Sequence[Message]) -> None:
        """Publish, and demand that everything is stored."""
        receipts = await self.transport.publish(messages)
        assert ["stored"] * len(messages) == [receipt.status for receipt in receipts], f"{receipts}"

    @asynccontextmanager
    async def member(
        self, group: str = "billing", *, subscription: Subscription | None = None, transport: Transport | None = None
    ) -> AsyncGenerator[Reader]:
        """Join a group for the length of the block; *transport* is a client of its own where given."""
        wanted = self.subscription(group) if subscription is None else subscription
        async with (transport or self.transport).subscribe(wanted) as receiver:
            yield Reader(receiver, self.journal)

    async def lives(self, number: int, *, group: str = "billing", hasty: bool = False) -> list[Reader]:
        """Return *number* members, each with a client of its own, all of them in the group until the test ends.

        They are calm, unless they are *hasty*: those lose their lanes where they are not heard of for a moment.
        """
        readers: list[Reader] = []
        for _ in range(number):
            transport = await self.open()
            joined = transport.subscribe(self.subscription(group) if hasty else self.calm(group))
            readers.append(Reader(await self._stack.enter_async_context(joined), self.journal))
        return readers


class Reader:
    """A member that plays fair: it hears lane events and declares revoked lanes drained when they are."""

    def __init__(self, receiver: Receiver, journal: list[Delivery] | None = None) -> None:
        self.receiver = receiver
        self._journal: list[Delivery] = [] if journal is None else journal
        self.events: list[LaneEvent] = []
        self.lanes: dict[str, int] = {}
        self.unsettled: dict[tuple[Address, str, int | str], Delivery] = {}
        self._revoked: set[str] = set()

    async def poll(self, limit: int = 100, wait: float = 0.05) -> list[Delivery]:
        """Receive once and return the deliveries."""
        found = await self.receiver.receive(limit, timedelta(seconds=wait))
        deliveries: list[Delivery] = []
        for one in found:
            if isinstance(one, LaneEvent):
                self._hear(one)
            else:
                assert self.lanes.get(one.lane) == one.epoch, f"{one.lane} was not assigned with epoch {one.epoch}"
                self.unsettled[_place(one)] = one
                deliveries.append(one)
                self._journal.append(one)
        assert len(deliveries) <= limit, f"asked for {limit}, got {len(deliveries)}"
        await self._drain()
        return deliveries

    def _hear(self, event: LaneEvent) -> None:
        self.events.append(event)
        match event.kind:
            case "assigned":
                self.lanes[event.lane] = event.epoch
            case "revoking":
                self._revoked.add(event.lane)
            case "lost":
                self.lanes.pop(event.lane, None)
                self._revoked.discard(event.lane)
                self._forget(one for one in list(self.unsettled.values()) if one.lane == event.lane)

    def _forget(self, deliveries: Iterable[Delivery]) -> None:
        for one in deliveries:
            self.unsettled.pop(_place(one), None)

    async def _drain(self) -> None:
        busy = {one.lane for one in self.unsettled.values()}
        if drained := sorted(self._revoked - busy):
            self._revoked -= set(drained)
            for lane in drained:
                self.lanes.pop(lane, None)
            await self.receiver.steer(drained=drained)

    async def take(self, number: int, *, within: float | None = None) -> list[Delivery]:
        """Receive until there are *number* deliveries, and no more than that; leave them unsettled."""
        end = _end(within)
        found: list[Delivery] = []
        while len(found) < number and asyncio.get_running_loop().time() < end:
            found += await self.poll(number - len(found))
        assert number == len(found), f"only {len(found)} of {number} deliveries came in time"
        return found

    async def consume(self, number: int, *, within: float | None = None) -> list[Delivery]:
        """Receive and ack *number* deliveries."""
        end = _end(within)
        found: list[Delivery] = []
        while len(found) < number and asyncio.get_running_loop().time() < end:
            batch = await self.poll(number - len(found))
            await self.ack(batch)
            found += batch
        assert number == len(found), f"only {len(found)} of {number} deliveries came in time"
        return found

    async def until_owner(self, number: int = 1, *, within: float | None = None) -> None:
        """Wait until at least *number* lanes are ours; no delivery is taken."""
        end = _end(within)
        while len(self.lanes) < number and asyncio.get_running_loop().time() < end:
            await self.poll(0)
        assert number <= len(self.lanes), f"only {len(self.lanes)} of {number} lanes were assigned in time"

    async def silence(self, seconds: float) -> None:
        """Demand that nothing is delivered for so long."""
        end = asyncio.get_running_loop().time() + seconds
        while (rest := end - asyncio.get_running_loop().time()) > 0:
            found = await self.poll(100, rest)
            assert [] == found, f"nothing was due, but {ids(found)} came"

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Ack, and demand that each is settled."""
        if deliveries:
            await self._settled(await self.receiver.settle(ack=deliveries))

    async def release(
        self, deliveries: Sequence[Delivery], *, delay: timedelta = timedelta(0), counted: bool = True
    ) -> None:
        """Release together, and demand that each is settled."""
        await self._settled(await self.receiver.settle(release=[Release(one, delay, counted) for one in deliveries]))

    async def move(self, delivery: Delivery, messages: Sequence[Message]) -> None:
        """Move, and demand that it is settled."""
        await self._settled(await self.receiver.settle(move=[Move(delivery, messages)]))

    async def _settled(self, settlements: Sequence[Settlement]) -> None:
        wrong = [one for one in settlements if one.status != "settled"]
        assert [] == wrong, f"{len(wrong)} of {len(settlements)} were not settled: {wrong[:3]}"
        self._forget(one.delivery for one in settlements)
        await self._drain()


async def consume_all(readers: Sequence[Reader], number: int, *, within: float | None = None) -> list[list[Delivery]]:
    """Let members ack *number* deliveries between them, side by side; return what each had, in its order."""
    found: list[list[Delivery]] = [[] for _ in readers]
    end = _end(within)

    async def run(reader: Reader, mine: list[Delivery]) -> None:
        while sum(map(len, found)) < number and asyncio.get_running_loop().time() < end:
            batch = await reader.poll(20)
            mine += batch
            await reader.ack(batch)

    async with asyncio.TaskGroup() as tasks:
        for reader, mine in zip(readers, found, strict=True):
            tasks.create_task(run(reader, mine))
    total = sum(map(len, found))
    assert number <= total, f"only {total} of {number} deliveries came in time"
    return found


async def eventually(
    holds: Callable[[], Awaitable[bool]], what: str, *, seen: Sequence[object] = (), within: float | None = None
) -> None:
    """Wait until *holds* answers true; the last of *seen* is shown if it does not."""
    end = _end(within)
    while not await holds():
        assert asyncio.get_running_loop().time() < end, f"not in time: {what}; last seen: {seen[-1:]}"
        await asyncio.sleep(0.02)


async def spread(readers: Sequence[Reader], lanes: int, *, each: int = 1, within: float | None = None) -> None:
    """Wait until *lanes* lanes are owned and every member has at least *each*; no delivery is taken."""
    end = _end(within)
    while True:
        for reader in readers:
            await reader.poll(0, 0.01)
        owned = [len(reader.lanes) for reader in readers]
        if sum(owned) == lanes and min(owned) >= each:
            return
        assert asyncio.get_running_loop().time() < end, f"lanes owned when time was up: {owned}, not {lanes} in all"


def demand_key_order(published: Iterable[Message], journal: Iterable[Delivery]) -> None:
    """Demand that the first occurrences of each key came in the order they were published, none missing."""
    first: dict[str, Delivery] = {}
    for one in journal:
        first.setdefault(one.message.id, one)
    seen = by_key(first.values())
    for key, wanted in by_key(published).items():
        assert wanted == seen.get(key, []), f"key {key} came in another order than it was published"


def _end(within: float | None) -> float:
    patience = PATIENCE.get()
    return asyncio.get_running_loop().time() + (patience if within is None else min(within, patience))


def _place(one: Delivery) -> tuple[Address, str, int | str]:
    return one.message.to, one.lane, one.position


def ids(found: Iterable[Delivery | Message]) -> list[str]:
    """Return the message ids, in order."""
    return [one.message.id if isinstance(one, Delivery) else one.id for one in found]


def bodies(found: Iterable[Delivery | Message]) -> list[bytes]:
    """Return the bodies, in order."""
    return [one.message.body if isinstance(one, Delivery) else one.body for one in found]


def by_key(found: Iterable[Delivery | Message]) -> dict[str | None, list[str]]:
    """Return the ids of each key, in order."""
    keys: dict[str | None, list[str]] = {}
    for one in found:
        message = one.message if isinstance(one, Delivery) else one
        keys.setdefault(message.key, []).append(message.id)
    return keys
