"""A rebalance storm: a cluster of three brokers, where brokers and services die, stop and come all the time.

Brokers are killed with ``kill -9`` in turn, now and then two at once; what happens to services is told in `storms`.
`python tests/faults/kafka_storm.py --deaths 6 --seed 1` runs one storm and prints its figures as JSON.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import storms
from fault_rounds import Round
from kills import World, as_round

from tidewire.testing.servers.kafka import KafkaServer, private_cluster

__all__ = ["one_round"]

PATIENCE = 60.0


class Storm:
    """One run. *deaths*: how many brokers are to be killed."""

    def __init__(self, world: World, brokers: list[KafkaServer], deaths: int) -> None:
        self.world = world
        self.brokers = brokers
        self.deaths = deaths
        self._next = time.monotonic() + 2.0
        self._down: list[tuple[float, KafkaServer]] = []

    def run(self) -> None:
        """Let it rage until all brokers that are to die have died and are back."""
        services = storms.Services(self.world)
        end = time.monotonic() + PATIENCE + self.deaths * 20
        while self.deaths > 0 or self._down:
            assert time.monotonic() < end, "the storm does not end"
            self.world.listen(0.05)
            self._turn_brokers(time.monotonic())
            services.turn()
        services.end()
        for broker in self.brokers:
            broker.wait_until_ready()

    def _turn_brokers(self, now: float) -> None:
        chance, figures = self.world.chance, self.world.kills
        for back, broker in [one for one in self._down if one[0] <= now]:
            self._down.remove((back, broker))
            broker.start(wait=False)
            self._next = now + chance.uniform(2.0, 5.0)
        if self._down or now < self._next or not all(_listens(one) for one in self.brokers):
            return
        if self.deaths > 0:
            first = figures["brokers killed"] % len(self.brokers)
            for number in range(2 if chance.random() < 0.25 else 1):
                broker = self.brokers[(first + number) % len(self.brokers)]
                broker.kill()
                figures["brokers killed"] += 1
                self.deaths -= 1
                self._down.append((now + chance.uniform(0.0, 2.0), broker))


def _listens(broker: KafkaServer) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", broker.port), timeout=0.5):
            return True
    except OSError:
        return False


def run_storm(directory: Path, *, seed: int, deaths: int, plant: str = "") -> World:
    """Run the services on a cluster of their own through a storm, heal, and judge."""
    world = storms.new_world(directory, seed=seed, plant=plant)
    with private_cluster() as brokers:
        servers = ",".join(one.address for one in brokers)
        (directory / "broker.url").write_text(f"kafka://{servers}?timeout=4&replication=3")
        Storm(world, brokers, deaths).run()
        world.heal()
    return storms.judged(world, directory)


def one_round(seed: int) -> Round:
    """One storm with twelve deaths of brokers; for `make faults`."""
    return as_round(storms.run_apart(__file__, seed=seed, deaths=12), seed)


if __name__ == "__main__":
    sys.exit(storms.run_here(run_storm, "an Apache Kafka server"))
