"""The audit: in the broker's own ledger, or in a topic where it has none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from operations_world import ANN, everything, letter, plan_of, provisioned
from runtime_world import Opened

from tidewire.errors import PublishError, TransportError
from tidewire.model import (
    Act,
    Address,
    Browsed,
    Change,
    GroupInfo,
    GroupSpec,
    Message,
    Receipt,
    Stats,
    Topic,
    TopicInfo,
    TopicSpec,
)
from tidewire.operations.audit import AUDIT_TOPIC, TopicLedger, acts_of, interrupted, ledger_of
from tidewire.operations.redrive import interrupted_redrives, redrive
from tidewire.transports.memory import MemoryBroker, MemoryTransport, open_memory_transport


class WithoutLedger:
    """The memory transport as an adapter without a `Ledger` offers it: everything else is passed on."""

    def __init__(self, inner: MemoryTransport) -> None:
        self._inner = inner
        self.capabilities = inner.capabilities
        self.subscribe = inner.subscribe

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        return await self._inner.provision(topics, groups, dry_run=dry_run)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        return await self._inner.publish(messages)

    async def topics(self) -> Sequence[TopicInfo]:
        return await self._inner.topics()

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        return await self._inner.groups(topic)

    async def stats(self, topic: str, group: str) -> Stats:
        return await self._inner.stats(topic, group)

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        return await self._inner.browse(address, after=after, limit=limit)

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        return await self._inner.remove(channel, positions)


@asynccontextmanager
async def without_ledger(broker: MemoryBroker | None = None) -> AsyncIterator[WithoutLedger]:
    """Open a transport that keeps no acts."""
    async with open_memory_transport(broker) as inner:
        yield WithoutLedger(inner)


class _World:
    """A transport where the helpers expect a world."""

    def __init__(self, transport: object) -> None:
        self.transport = transport


def act(number: int, state: str = "done") -> Act:
    """Return an act."""
    return Act(id=f"act-{number}", at=number, who="ann", verb="redrive", state=state)  # type: ignore[arg-type]


def test_acts_are_paged_in_order(opened: Opened) -> None:
    """Every act comes once, oldest first, whatever their number; what they say is what was noted."""

    async def scenario() -> None:
        async with opened() as world:
            for number in range(230):
                await ledger_of(world.transport).note(act(number))
            assert [act(number) for number in range(230)] == [one async for _, one in acts_of(world.transport)]

    asyncio.run(scenario())


def test_a_broker_without_a_ledger_keeps_acts_in_a_topic() -> None:
    """The topic is made when it is first needed and never trimmed; reading on from a number works."""

    async def scenario() -> None:
        async with without_ledger() as transport:
            ledger = ledger_of(transport)  # type: ignore[arg-type]
            assert isinstance(ledger, TopicLedger)
            assert [] == list(await ledger.acts())
            for number in range(230):
                await ledger.note(act(number))
            assert [(n + 1, act(n)) for n in range(230)] == [one async for one in acts_of(transport)]  # type: ignore[arg-type]
            assert [(201, act(200))] == list(await ledger.acts(after=200, limit=1))
            assert [(2, act(1)), (3, act(2))] == list(await ledger.acts(after=1, limit=2))
            (topic,) = [topic for topic in await transport.topics() if topic.name == AUDIT_TOPIC]
            assert (1, None) == (topic.lanes, topic.retention)

    asyncio.run(scenario())


def test_a_redrive_is_audited_on_a_broker_without_a_ledger() -> None:
    """The same acts, begun and done, are messages of the audit topic."""

    async def scenario() -> None:
        async with without_ledger() as transport:
            world = _World(transport)
            await provisioned(world)  # type: ignore[arg-type]
            await transport.publish([letter("1")])
            await redrive(transport, await plan_of(world, everything()), by=ANN)  # type: ignore[arg-type]
            messages = [browsed.message for browsed in await transport.browse(Topic(AUDIT_TOPIC))]
            assert ["tidewire.audit.noted"] * 2 == [message.headers["ce-type"] for message in messages]
            assert ["begun", "done"] == [one.state async for _, one in acts_of(transport)]  # type: ignore[arg-type]

    asyncio.run(scenario())


def test_an_act_that_is_not_confirmed_is_an_error_and_nothing_is_done() -> None:
    """No act without its line in the audit: where that is refused, the letters stay."""

    async def scenario() -> None:
        broker = MemoryBroker()
        async with without_ledger(broker) as transport:
            world = _World(transport)
            await provisioned(world)  # type: ignore[arg-type]
            await transport.publish([letter("1")])
            plan = await plan_of(world, everything())  # type: ignore[arg-type]
            broker.refuse = lambda message: "full" if message.to == Topic(AUDIT_TOPIC) else None
            with pytest.raises(PublishError, match="full"):
                await redrive(transport, plan, by=ANN)  # type: ignore[arg-type]
            assert 1 == (await plan_of(world, everything())).count  # type: ignore[arg-type]

    asyncio.run(scenario())


def test_an_audit_topic_of_other_making_is_refused() -> None:
    """A topic that lets acts go after a while cannot hold the audit."""

    async def scenario() -> None:
        async with without_ledger() as transport:
            await transport.provision([TopicSpec(AUDIT_TOPIC, lanes=4)], [])
            with pytest.raises(TransportError, match="cannot hold the audit"):
                await ledger_of(transport).note(act(1))  # type: ignore[arg-type]

    asyncio.run(scenario())


def test_what_has_begun_and_not_ended_was_interrupted(opened: Opened) -> None:
    """Ended ones, failed ones and other verbs are not among them."""

    async def scenario() -> None:
        async with opened() as world:
            ledger = ledger_of(world.transport)
            for one in (act(1, "begun"), act(2, "begun"), act(3, "begun"), act(1, "done"), act(3, "failed")):
                await ledger.note(one)
            assert [act(2, "begun")] == await interrupted_redrives(world.transport)
            assert [] == await interrupted(world.transport, "discard")

    asyncio.run(scenario())
