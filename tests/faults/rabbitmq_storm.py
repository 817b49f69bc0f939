"""A storm over one RabbitMQ: it is killed again and again while services are killed, ended and stopped.

What happens to services is told in `storms`.
`python tests/faults/rabbitmq_storm.py --deaths 3 --seed 1` runs one storm and prints its figures as JSON.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import kill_world
import storms
from fault_rounds import Round
from kills import World, as_round

from tidewire.model import GroupSpec, TopicSpec
from tidewire.testing.servers.rabbitmq import RabbitServer, private_rabbit
from tidewire.transports.rabbitmq import open_rabbit_transport

__all__ = ["one_round"]

CALM = (6.0, 10.0)
"""Seconds between two deaths of the broker: services join, and work, in between."""


def rage(world: World, broker: RabbitServer, deaths: int) -> None:
    """Let the storm go on until the broker has died so many times and is back."""
    services = storms.Services(world)
    following = time.monotonic() + CALM[1]
    while deaths > 0:
        world.listen(0.05)
        services.turn()
        if time.monotonic() >= following:
            broker.write_down()
            broker.kill()
            world.kills["brokers killed"] += 1
            broker.start()
            deaths -= 1
            following = time.monotonic() + world.chance.uniform(*CALM)
    services.end()


async def provision(url: str) -> None:
    """Make the groups before anything is published: a queue keeps nothing for a group that is made later."""
    topics, lanes = {"billing": "shop.order", "audit": "shop.payment"}, kill_world.OPTIONS.lanes
    async with open_rabbit_transport(url) as transport:
        await transport.provision(
            [TopicSpec(topic, lanes) for topic in topics.values()],
            [GroupSpec(group, [topic]) for group, topic in topics.items()],
        )


def run_storm(directory: Path, *, seed: int, deaths: int, plant: str = "") -> World:
    """Run the services on a broker of their own through a storm, heal, and judge."""
    world = storms.new_world(directory, seed=seed, plant=plant)
    with private_rabbit(root=Path(os.environ.get("TIDEWIRE_RABBITMQ_ROOT", "/"))) as broker:
        (directory / "broker.url").write_text(f"{broker.url}?timeout=4")
        asyncio.run(provision(broker.url))
        rage(world, broker, deaths)
        world.heal()
    return storms.judged(world, directory)


def one_round(seed: int) -> Round:
    """One storm with four deaths of the broker; for `make faults`."""
    return as_round(storms.run_apart(__file__, seed=seed, deaths=4), seed)


if __name__ == "__main__":
    sys.exit(storms.run_here(run_storm, "a RabbitMQ server"))
