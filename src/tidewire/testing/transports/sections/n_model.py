"""Section N: the whole at once, against a model that anybody can check by reading."""

# ruff: noqa: S311  (seeded chance; the expected value stands on the left)

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec

from tidewire.model import DeadChannel, Delivery
from tidewire.testing.transports.bench import Bench, Reader, consume_all, demand_key_order, ids

KEYS = [f"k{number}" for number in range(8)]


async def test_stateful_model(bench: Bench) -> None:
    """CF-123: two groups with members that come, go, ack, release, move and die: all arrive, in order, counted."""
    bench.need(order=bench.capabilities.order)
    await bench.provision("billing", "shipping", lanes=4)
    chance = random.Random(123)
    published = bench.messages(0)
    ends = {group: _Ends() for group in ("billing", "shipping")}
    for _ in range(12):
        batch = bench.messages(chance.randrange(1, 25), keys=chance.sample(KEYS, 4))
        await bench.publish(batch)
        published += batch
        group = chance.choice(list(ends))
        async with bench.member(group, transport=await bench.open()) as reader:
            for _ in range(chance.randrange(1, 4)):
                found = await reader.poll(chance.randrange(1, 20), 0.2)
                await _settle_somehow(found, reader, dead=bench.dead(group), ends=ends[group], chance=chance)
    for group, end in ends.items():
        readers = await bench.lives(2, group=group)
        start = len(bench.journal)
        await consume_all(readers, len(published) - len(end.settled) - len(end.buried))
        whole = end.first + bench.journal[start:]
        demand_key_order(published, whole)
        assert sorted(ids(published)) == sorted(end.settled + end.buried + ids(bench.journal[start:]))
        stats = await bench.stats(group)
        assert (0, 0, 0, len(end.buried)) == (stats.ready, stats.in_flight, stats.delayed, stats.dead)
        letters = await bench.inspector.browse(bench.dead(group), limit=1000)
        assert end.buried == [one.message.id for one in letters]
    assert any(end.failures_seen for end in ends.values()), "the script has released something"


@dataclass(slots=True)
class _Ends:
    """What became of a group's deliveries so far."""

    settled: list[str] = field(default_factory=list[str])
    buried: list[str] = field(default_factory=list[str])
    failures: dict[str, int] = field(default_factory=dict[str, int])
    failures_seen: int = 0
    first: list[Delivery] = field(default_factory=list[Delivery])


async def _settle_somehow(
    found: list[Delivery], reader: Reader, *, dead: DeadChannel, ends: _Ends, chance: random.Random
) -> None:
    """Settle each delivery in one of four ways; with one that is not settled, all later ones of its key."""
    blocked: set[str | None] = set()
    back: list[Delivery] = []
    for one in found:
        ends.first.append(one)
        attempt = 1 + ends.failures.get(one.message.id, 0)
        assert attempt == one.attempt, f"attempt {one.attempt} of a message that failed {attempt - 1} times"
        ends.failures_seen += attempt > 1
        fate = "back" if one.message.key in blocked else chance.choice(["ack", "ack", "move", "back", "keep"])
        if fate == "ack":
            await reader.ack([one])
            ends.settled.append(one.message.id)
        elif fate == "move":
            await reader.move(one, [msgspec.structs.replace(one.message, to=dead)])
            ends.buried.append(one.message.id)
        elif fate == "back":
            blocked.add(one.message.key)
            ends.failures[one.message.id] = ends.failures.get(one.message.id, 0) + 1
            back.append(one)
        else:  # kept: it comes back uncounted when the member leaves, and with it the rest of its key
            blocked.add(one.message.key)
            await reader.release([one], counted=False)
    if back:
        await reader.release(back)
