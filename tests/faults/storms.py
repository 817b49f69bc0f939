"""What storms over brokers have in common: services that die, stop and come all the time, and the books at the end.

The services are those of `kill_world`. They are killed, ended in good order, or stopped for longer than their place in
the group is kept. What happens to the broker meanwhile is each storm's own.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import kill_books
import kill_world
from fault_rounds import NotPossible
from kills import Child, World, ended

from tidewire.errors import TransportUnavailable
from tidewire.testing.servers.processes import NoServer
from tidewire.testing.simulation.checkers import Audience, History, Op, judge

__all__ = ["Services", "judged", "new_world", "run_apart", "run_here"]

ROLES = ("shop", "billing1", "billing2", "billing3", "audit1", "audit2")
LIFE = 4.0
STOPPED = 2.5  # seconds: longer than a silent member keeps its place


async def play(role: str, directory: Path, say: kill_world.Say) -> None:
    """Be one of the world's processes; who finds no broker when it begins ends, and is started again."""
    faulthandler.enable((directory / f"crash-{os.getpid()}").open("w"))  # a client library may end a process
    try:
        await kill_world.role(role.rstrip("123"), directory, say)
    except TransportUnavailable:
        if role == "heal":
            raise
        say("absent")


class Services:
    """The processes of a world, and what happens to them. They begin at once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asleep: dict[int, float] = {}
        for role in ROLES:
            world.start(role)

    def end(self) -> None:
        """Kill them all."""
        for child in list(self._world.children.values()):
            self._world.kill(child)

    def turn(self) -> None:
        """Start what has ended, wake what has slept long enough, and let fate strike whose time has come."""
        for child in list(self._world.children.values()):
            self._turn(child, time.monotonic())

    def _turn(self, child: Child, now: float) -> None:
        world = self._world
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
        world, lot = self._world, self._world.chance.random()
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


def new_world(directory: Path, *, seed: int, plant: str) -> World:
    """Return a world in which nothing has begun."""
    logging.disable(logging.CRITICAL)
    return World(directory, random.Random(seed), plant, play=play, life=LIFE, opening=30.0)


def judged(world: World, directory: Path) -> World:
    """Return *world*, which has healed, with what is wrong with its books."""
    world.problems += [text for path in directory.glob("crash-*") if (text := path.read_text()[:3_000])]
    world.problems += kill_books.problems(directory, world.acked)
    world.problems += [str(found) for found in judge(_history(directory, world.acked), skip=["C11"])]
    return world


def _history(directory: Path, acked: set[str]) -> History:
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


def run_apart(script: str, *, seed: int, deaths: int, plant: str = "") -> dict[str, object]:
    """Run the storm of *script* in a process that forks: pytest and the campaign have threads.

    Raises:
        NotPossible: its broker cannot be had here.
    """
    command = [sys.executable, script, "--seed", str(seed), "--deaths", str(deaths), "--plant", plant]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300 + deaths * 30)
    if done.returncode == 3:
        raise NotPossible(done.stderr.strip())
    if done.returncode:
        raise RuntimeError(f"the storm ended with {done.returncode}: {done.stderr[-2_000:]}")
    told: dict[str, object] = json.loads(done.stdout)
    return told


def run_here(storm: Callable[..., World], broker: str) -> int:
    """Run the *storm* that the command line asks for, and print what came of it; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--deaths", type=int, default=3)
    parser.add_argument("--plant", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidewire-storm-") as directory:
        try:
            world = storm(Path(directory), seed=arguments.seed, deaths=arguments.deaths, plant=arguments.plant)
        except NoServer as error:
            print(f"it needs {broker}: {error}", file=sys.stderr)
            return 3
        figures = world.kills + kill_books.figures(Path(directory), world.acked)
    print(json.dumps({"figures": figures, "problems": world.problems[:20]}))
    return 0
