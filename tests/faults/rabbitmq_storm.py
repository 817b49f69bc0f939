"""A storm over one RabbitMQ: it is killed again and again while services are killed, ended and stopped.

The services are those of `kill_world`, and what happens to them is what `kafka_storm` does. Then the books.
`python tests/faults/rabbitmq_storm.py --deaths 3 --seed 1` runs one storm and prints its figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import kafka_storm
import kill_books
import kill_world
from fault_rounds import NotPossible, Round
from kills import World, as_round

from tidewire.model import GroupSpec, TopicSpec
from tidewire.testing.servers.processes import NoServer
from tidewire.testing.servers.rabbitmq import RabbitServer, private_rabbit
from tidewire.testing.simulation.checkers import judge
from tidewire.transports.rabbitmq import open_rabbit_transport

__all__ = ["one_round", "run_apart"]

CALM = (6.0, 10.0)
"""Seconds between two deaths of the broker: services join, and work, in between."""


def rage(world: World, broker: RabbitServer, deaths: int) -> None:
    """Let the storm go on until the broker has died so many times and is back."""
    services = kafka_storm.Storm(world, [], 0)
    for role in kafka_storm.ROLES:
        world.start(role)
    following = time.monotonic() + CALM[1]
    while deaths > 0:
        world.listen(0.05)
        for child in list(world.children.values()):
            services._turn(child, time.monotonic())
        if time.monotonic() >= following:
            broker.write_down()
            broker.kill()
            world.kills["brokers killed"] += 1
            broker.start()
            deaths -= 1
            following = time.monotonic() + world.chance.uniform(*CALM)
    for child in list(world.children.values()):
        world.kill(child)


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
    logging.disable(logging.CRITICAL)
    world = World(directory, random.Random(seed), plant, play=kafka_storm.play, life=kafka_storm.LIFE, opening=30.0)
    with private_rabbit(root=Path(os.environ.get("TIDEWIRE_RABBITMQ_ROOT", "/"))) as broker:
        (directory / "broker.url").write_text(f"{broker.url}?timeout=4")
        asyncio.run(provision(broker.url))
        rage(world, broker, deaths)
        world.heal()
    world.problems += [text for path in directory.glob("crash-*") if (text := path.read_text()[:3_000])]
    world.problems += kill_books.problems(directory, world.acked)
    world.problems += [str(found) for found in judge(kafka_storm.history_of(directory, world.acked), skip=["C11"])]
    return world


def run_apart(*, seed: int, deaths: int, plant: str = "") -> dict[str, object]:
    """Run one storm in a process that forks: pytest and the campaign have threads.

    Raises:
        NotPossible: no RabbitMQ can be had here.
    """
    command = [sys.executable, __file__, "--seed", str(seed), "--deaths", str(deaths), "--plant", plant]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300 + deaths * 30)
    if done.returncode == 3:
        raise NotPossible(f"it needs a RabbitMQ server: {done.stderr.strip()}")
    if done.returncode:
        raise RuntimeError(f"the storm ended with {done.returncode}: {done.stderr[-2_000:]}")
    told: dict[str, object] = json.loads(done.stdout)
    return told


def one_round(seed: int) -> Round:
    """One storm with four deaths of the broker; for `make faults`."""
    return as_round(run_apart(seed=seed, deaths=4), seed)


def main(argv: list[str]) -> int:
    """Run one storm and print what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--deaths", type=int, default=3)
    parser.add_argument("--plant", default="")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tidewire-storm-") as directory:
        try:
            world = run_storm(Path(directory), seed=arguments.seed, deaths=arguments.deaths, plant=arguments.plant)
        except NoServer as error:
            print(error, file=sys.stderr)
            return 3
        figures = world.kills + kill_books.figures(Path(directory), world.acked)
    print(json.dumps({"figures": figures, "problems": world.problems[:20]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
