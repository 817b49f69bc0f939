"""A storm over a RabbitMQ of three nodes: one is killed, stands still, or loses its data, and two of them die at once.

What happens to services is told in `storms`.
`python tests/faults/rabbitmq_cluster_storm.py --deaths 4 --seed 1` runs one storm and prints its figures as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import rabbitmq_storm
import storms
from fault_rounds import Round
from kills import World, as_round

from tidewire.testing.servers.rabbitmq import RabbitServer, private_cluster

__all__ = ["MISHAPS", "one_round"]

MISHAPS = ("nodes killed", "nodes stopped and continued", "nodes that lost their data")

CALM = (3.0, 8.0)
"""Seconds between the end of one mishap and the next one."""
BACK_MAX = 120.0
TICK = 4
"""Seconds of silence after which a node counts as gone, or a quarter more."""


class Storm:
    """One run. *mishaps*: how many there are to be; of four one is of each kind."""

    def __init__(self, world: World, nodes: list[RabbitServer], mishaps: int) -> None:
        self.world = world
        self.nodes = nodes
        self.mishaps = mishaps
        self._services = storms.Services(world)

    def run(self) -> None:
        """Let all happen that is to happen, and bring everybody back."""
        kinds = [self.one_dies, self.one_stands_still, self.two_die, self.one_loses_everything]
        self.world.chance.shuffle(kinds)
        try:
            self._pass(CALM[1])
            for number in range(self.mishaps):
                kinds[number % len(kinds)](self.nodes[number % 3 :] + self.nodes[: number % 3])
                self._wait_until_whole()
                self._pass(self.world.chance.uniform(*CALM))
        finally:
            self._services.end()

    def one_dies(self, nodes: list[RabbitServer]) -> None:
        """Kill one."""
        self._kill(nodes[0])
        self._pass(self.world.chance.uniform(0.0, 3.0))
        self._come_back(nodes[0])

    def two_die(self, nodes: list[RabbitServer]) -> None:
        """Kill two: the third can store nothing."""
        self._kill(nodes[0])
        self._kill(nodes[1])
        self._pass(self.world.chance.uniform(1.0, 6.0))
        self._come_back(nodes[1], nodes[0])

    def one_stands_still(self, nodes: list[RabbitServer]) -> None:
        """Let one stand still until the others have given it up: it stays apart from them until it is restarted."""
        nodes[0].pause()
        self.world.kills[MISHAPS[1]] += 1
        self._pass(1.25 * TICK + self.world.chance.uniform(0.5, 3.0))
        nodes[0].resume()
        self._pass(self.world.chance.uniform(*CALM))
        nodes[0].stop()
        self._come_back(nodes[0])

    def one_loses_everything(self, nodes: list[RabbitServer]) -> None:
        """Kill one and delete its data; it is forgotten, joins anew, and gets its replicas again."""
        self._kill(nodes[0])
        nodes[0].lose_data()
        nodes[1].control("forget_cluster_node", nodes[0].node)
        self._come_back(nodes[0])
        self._wait_until_whole()
        nodes[1].control("grow", nodes[0].node, "all", program="rabbitmq-queues")
        self.world.kills[MISHAPS[2]] += 1

    def _kill(self, node: RabbitServer) -> None:
        node.kill()
        self.world.kills[MISHAPS[0]] += 1

    def _come_back(self, *nodes: RabbitServer) -> None:
        for node in nodes:
            node.start(wait=False)

    def _wait_until_whole(self) -> None:
        """Let services live and die until every node sees all nodes."""
        end = time.monotonic() + BACK_MAX
        for node in self.nodes:
            while not (node.is_ready() and self._sees_all(node)):
                assert time.monotonic() < end, f"not back in time: {(node.folder / 'log').read_text()[-2000:]}"
                self._pass(0.5)

    def _sees_all(self, node: RabbitServer) -> bool:
        try:
            said = json.loads(node.control("cluster_status", "--formatter", "json"))
        except RuntimeError:  # it is about to restart, after it was given up
            return False
        return len(said["running_nodes"]) == len(self.nodes)

    def _pass(self, seconds: float) -> None:
        """Let services live and die for so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.world.listen(0.05)
            self._services.turn()


def run_storm(directory: Path, *, seed: int, deaths: int, plant: str = "") -> World:
    """Run the services on a cluster of their own through a storm, heal, and judge."""
    world = storms.new_world(directory, seed=seed, plant=plant)
    with private_cluster(root=Path(os.environ.get("TIDEWIRE_RABBITMQ_ROOT", "/")), tick=TICK) as nodes:
        others = ",".join(one.address for one in nodes[1:])
        url = f"{nodes[0].url},{others}?timeout=4"
        (directory / "broker.url").write_text(url)
        asyncio.run(rabbitmq_storm.provision(url))
        Storm(world, nodes, deaths).run()
        world.heal()
    return storms.judged(world, directory)


def one_round(seed: int) -> Round:
    """One storm with eight mishaps; for `make faults`."""
    return as_round(storms.run_apart(__file__, seed=seed, deaths=8), seed)


if __name__ == "__main__":
    sys.exit(storms.run_here(run_storm, "a RabbitMQ server"))
