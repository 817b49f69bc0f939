"""A rebalance storm: a cluster of three brokers, where brokers and services die, stop and come all the time.

The services are those of `kill_world`. Brokers are killed with ``kill -9`` in turn, now and then two at once; services
are killed, ended in good order, or stopped for longer than their place in the group is kept. Then the books.
`python tests/faults/kafka_storm.py --deaths 6 --seed 1` runs one storm and prints its figures as JSON.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import kill_books
import kill_world
from fault_rounds import NotPossible, Round
from kills import Child, World, as_round, ended

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
from kafka_server import KafkaServer, NoServer, private_cluster

from tidewire.errors import TransportUnavailable
from tidewire.testing.simulation.checkers import Audience, History, Op, judge

__all__ = ["one_round", "run_apart"]

ROLES = ("shop", "billing1", "billing2", "billing3", "audit1", "audit2")
LIFE = 4.0
STOPPED = 2.5  # seconds: longer than a silent member keeps its place
PATIENCE = 60.0


async def play(role: str, directory: Path, say: kill_world.Say) -> None:
    """Be one of the world's processes; who finds no broker when it begins ends, and is started again."""
    faulthandler.enable((directory / f"crash-{os.getpid()}").open("w"))  # a client library may end a process
    try:
        await kill_world.role(role.rstrip("123"), directory, say)
    except TransportUnavailable:
        if role == "heal":
            raise
        say("absent")


class Storm:
    """One run. *deaths*: how many brokers are to be killed."""

    def __init__(self, world: World, brokers: list[KafkaServer], deaths: int) -> None:
        self.world = world
        self.brokers = brokers
        self.deaths = deaths
        self._next = time.monotonic() + 2.0
        self._down: list[tuple[float, KafkaServer]] = []
        self._asleep: dict[int, float] = {}

    def run(self) -> None:
        """Let it rage until all brokers that are to die have died and are back."""
        for role in ROLES:
            self.world.start(role)
        end = time.monotonic() + PATIENCE + self.deaths * 20
        while self.deaths > 0 or self._down:
            assert time.monotonic() < end, "the storm does not end"
            self.world.listen(0.05)
            self._turn_brokers(time.monotonic())
            for child in list(self.world.children.values()):
                self._turn(child, time.monotonic())
        for child in list(self.world.children.values()):
            self.world.kill(child)
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

    def _turn(self, child: Child, now: float) -> None:
        world = self.world
        if ended(child):
            world.bury(child)
            self._asleep.pop(child.pid, None)
            world.start(child.role)
        elif child.pid in self._asleep:
            if self._asleep[child.pid] <= now:
                del self._asleep[child.pid]
                os.kill(child.pid, signal.SIGCONT)
                child.kill_at = now + world.chance.expovariate(1 / LIFE)
        elif child.kill_at <= now:
            self._hit(child, now)

    def _hit(self, child: Child, now: float) -> None:
        world, lot = self.world, self.world.chance.random()
        if lot < 0.4 or not child.ready or child.role == "shop":
            world.kill(child)
            world.start(child.role)
        elif lot < 0.75:
            os.kill(child.pid, signal.SIGTERM)
            world.kills["services ended in good order"] += 1
            child.kill_at = now + 15.0
        else:
            os.kill(child.pid, signal.SIGSTOP)
            world.kills["services stopped and continued"] += 1
            self._asleep[child.pid] = now + STOPPED


def _listens(broker: KafkaServer) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", broker.port), timeout=0.5):
            return True
    except OSError:
        return False


def history_of(directory: Path, acked: set[str]) -> History:
    """Return what was published, acknowledged or not, and what took effect, from the services' own databases.

    Their inbox marks are compared by `kill_books`.
    """
    audience = [
        Audience(of="order", group="billing", handler="charge"),
        Audience(of="payment", group="audit", handler="keep"),
    ]
    history = History(audience)
    for key, n in kill_books.rows_of(directory, "shop", "SELECT key, n FROM orders ORDER BY row"):
        name = f"{key}-{n}"
        history.add(_published("order", name, key, n, sure=name in acked))
    for key, n in kill_books.rows_of(directory, "billing", "SELECT key, n FROM effect ORDER BY row"):
        history.add(_published("payment", f"{key}-{n} paid", key, n, sure=True))
    for group, handler, suffix in (("billing", "charge", ""), ("audit", "keep", " paid")):
        for row, key, n in kill_books.rows_of(directory, group, "SELECT row, key, n FROM effect ORDER BY row"):
            history.add(
                Op(f="effect", group=group, handler=handler, event=f"{key}-{n}{suffix}", key=key, n=n, number=row)
            )
    for service in ("shop", "billing", "audit"):
        left = kill_books.rows_of(directory, service, "SELECT count(*) FROM tidewire_outbox")[0][0]
        history.add(Op(f="outbox", group=service, n=left))
    return history


def _published(of: str, event: str, key: str, n: int, *, sure: bool) -> Op:
    return Op(f="publish", type="ok" if sure else "info", event=event, of=of, key=key, n=n)


def run_storm(directory: Path, *, seed: int, deaths: int, plant: str = "") -> World:
    """Run the services on a cluster of their own through a storm, heal, and judge."""
    logging.disable(logging.CRITICAL)
    world = World(directory, random.Random(seed), plant, play=play, life=LIFE, opening=30.0)
    with private_cluster() as brokers:
        servers = ",".join(one.address for one in brokers)
        (directory / "broker.url").write_text(f"kafka://{servers}?timeout=4&replication=3")
        Storm(world, brokers, deaths).run()
        world.heal()
    world.problems += [text for path in directory.glob("crash-*") if (text := path.read_text()[:3_000])]
    world.problems += kill_books.problems(directory, world.acked)
    world.problems += [str(found) for found in judge(history_of(directory, world.acked), skip=["C11"])]
    return world


def run_apart(*, seed: int, deaths: int, plant: str = "") -> dict[str, object]:
    """Run one storm in a process that forks: pytest and the campaign have threads.

    Raises:
        NotPossible: no Apache Kafka can be had here.
    """
    command = [sys.executable, __file__, "--seed", str(seed), "--deaths", str(deaths), "--plant", plant]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300 + deaths * 30)
    if done.returncode == 3:
        raise NotPossible(f"it needs an Apache Kafka server: {done.stderr.strip()}")
    if done.returncode:
        raise RuntimeError(f"the storm ended with {done.returncode}: {done.stderr[-2_000:]}")
    told: dict[str, object] = json.loads(done.stdout)
    return told


def one_round(seed: int) -> Round:
    """One storm with twelve deaths of brokers; for `make faults`."""
    return as_round(run_apart(seed=seed, deaths=12), seed)


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
