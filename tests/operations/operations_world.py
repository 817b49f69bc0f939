"""What the tests of operations share: an operator, dead letters made by a failing service or by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime_world import World

from tidewire.clock import SystemClock
from tidewire.model import Browsed, DeadChannel, DeadLetter, Delivery, GroupSpec, Message, Reason, Topic, TopicSpec
from tidewire.operations.audit import Operator
from tidewire.operations.redrive import Plan, plan_letters
from tidewire.operations.selection import Selection
from tidewire.rules.letters import dead_letter

ANN = Operator("ann")
TOPIC, GROUP = "shop.order", "billing"
CHANNEL = DeadChannel(TOPIC, GROUP)
NOW = SystemClock().now_us()
DAY = 86_400_000_000


def plan_of(world: World, selection: Selection, *, whole_keys: bool = True) -> Any:
    """Return the awaitable plan of an act on *selection*."""
    return plan_letters(world.transport, selection, now=SystemClock().now_us(), whole_keys=whole_keys)


def everything() -> Selection:
    """Return the selection of all letters."""
    return Selection()


async def provisioned(world: World, *, groups: Sequence[str] = (GROUP,)) -> None:
    """Create the topic and the groups."""
    await world.transport.provision([TopicSpec(TOPIC, lanes=4)], [GroupSpec(group, [TOPIC]) for group in groups])


def letter(event_id: str, *, key: str | None = None, reason: Reason = Reason.PERMANENT, **headers: str) -> Message:
    """Return a dead letter as the runtime writes it; *headers* are added, ``_`` standing for ``-``."""
    own = {"ce-id": event_id, "ce-source": "shop", "ce-type": "shop.order.placed", "content-type": "application/json"}
    message = Message(Topic(TOPIC), event_id, "shop", key, own, b'{"order_id":"1"}')
    made = dead_letter(
        Delivery(message, "0", 1, 1),
        DeadLetter(reason, "no stock of 17"),
        group=GROUP,
        failure=None,
        member="billing-1",
    )
    added = {name.replace("_", "-"): value for name, value in headers.items()}
    return Message(made.to, made.id, made.source, made.key, {**made.headers, **added}, made.body)


async def letters(world: World, group: str = GROUP) -> list[Browsed]:
    """Return every dead letter of *group*."""
    return list(await world.transport.browse(DeadChannel(TOPIC, group), limit=10_000))


async def ids(world: World, group: str = GROUP) -> list[str]:
    """Return the ids of the dead letters of *group*, in order."""
    return [browsed.message.id for browsed in await letters(world, group)]


async def until_held(world: World, keys: Sequence[str]) -> None:
    """Wait until exactly *keys* of the group are held."""

    async def as_wanted() -> bool:
        return [(TOPIC, key) for key in keys] == sorted(await world.store.held.keys(GROUP, [TOPIC]))

    await world.until(as_wanted)


def plan_numbers(plan: Plan) -> tuple[int, int, int]:
    """Return how many letters a plan has, how many of them follow their key, how many are too old."""
    return plan.count, plan.followers, plan.unfit
