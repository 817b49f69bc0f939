"""``kill -9`` at random moments, thousands of times, to real services on the embedded broker; then the books.

A fork server: everything is imported once, then each process is a fork that lives until it is killed.
`python tests/faults/kills.py --kills 100 --seed 1` runs one world and prints its figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kill_books
import kill_world
from fault_rounds import Round
from kill_plants import PLANTS

ROLES = ("shop", "billing1", "billing2", "audit1")
LIFE = 0.35  # seconds a process lives on average once it is ready; longer than a lease often enough to get on
HEAL_SECONDS = 90.0
Play = Callable[[str, Path, kill_world.Say], Coroutine[Any, Any, None]]


@dataclass
class Child:
    """One process: what it is, its pid, the pipe it talks through, and when it is to be killed."""

    role: str
    pid: int
    pipe: int
    kill_at: float
    ready: bool = False
    rest: bytes = b""


@dataclass
class World:
    """One run."""

    directory: Path
    chance: random.Random
    plant: str = ""
    play: Play = kill_world.role
    life: float = LIFE
    opening: float = 5.0  # seconds after which one that does not get ready is killed too
    children: dict[str, Child] = field(default_factory=dict)
    acked: set[str] = field(default_factory=set)
    said: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def start(self, role: str) -> Child:
        """Fork a process that plays *role*."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(reading)
                for other in self.children.values():
                    os.close(other.pipe)
                code = self._live(role, writing)
            finally:
                os._exit(code)
        os.close(writing)
        early = self.chance.random() < 0.1  # while it opens
        life = self.chance.uniform(0, 0.15) if early else self.opening
        child = self.children[role] = Child(role, pid, reading, time.monotonic() + life)
        return child

    def listen(self, seconds: float) -> None:
        """Take in what the processes say for at most *seconds*."""
        pipes = {child.pipe: child for child in self.children.values()}
        for pipe in select.select(list(pipes), [], [], max(0.0, seconds))[0]:
            self._read(pipes[pipe])

    def kill(self, child: Child) -> None:
        """End it, hear its last words, and count."""
        os.kill(child.pid, signal.SIGKILL)
        self.kills["kills"] += 1
        self.kills["of them while opening"] += not child.ready
        self.bury(child)

    def bury(self, child: Child) -> int:
        """Wait for its end and return its exit status."""
        _, status = os.waitpid(child.pid, 0)
        while self._read(child):
            pass
        os.close(child.pipe)
        del self.children[child.role]
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL):
            self.problems.append(f"{child.role} ended by itself with {code}")
        return code

    def _read(self, child: Child) -> bool:
        data = os.read(child.pipe, 65_536)
        *lines, child.rest = (child.rest + data).split(b"\n")
        for raw in lines:
            line = raw.decode()
            if line == "ready":
                child.ready = True
                child.kill_at = time.monotonic() + self.chance.expovariate(1 / self.life)
            elif line.startswith(("redriven ", "problem ")):
                word, _, rest = line.partition(" ")
                if word == "problem":
                    self.problems.append(f"{child.role}: {rest}")
                else:
                    self.said["redriven"] += int(rest)
            elif line in ("healed", "absent"):
                self.said[line] += 1
            else:
                self.acked.add(line)
        return bool(data)

    def _live(self, role: str, pipe: int) -> int:
        """In the child: play the role until the end; a failure is told."""

        def say(line: str) -> None:
            os.write(pipe, line.encode() + b"\n")

        if self.plant:
            PLANTS[self.plant]()
        try:
            asyncio.run(self.play(role, self.directory, say))
        except Exception:
            say("problem " + traceback.format_exc().replace("\n", " | ")[-1_500:])
            return 1
        return 0

    def heal(self) -> None:
        """With everybody dead: let one process work everything off, and wait for its end."""
        child = self.start("heal")
        end = time.monotonic() + HEAL_SECONDS
        while not self.said["healed"] and time.monotonic() < end and not ended(child):
            self.listen(0.2)
        if not self.said["healed"] and not ended(child):
            os.kill(child.pid, signal.SIGKILL)
            self.problems.append(f"not healed after {HEAL_SECONDS:g} s")
        self.bury(child)
        if not self.said["healed"]:
            self.problems.append("something waits for ever")


def ended(child: Child) -> bool:
    """Whether a process has ended and is to be buried."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run_world(directory: Path, *, seed: int, kills: int, plant: str = "") -> World:
    """Run the services, kill them *kills* times, heal, and compare the books."""
    logging.disable(logging.CRITICAL)
    world = World(directory, random.Random(seed), plant)
    for role in ROLES:
        world.start(role)
    while world.kills["kills"] < kills:
        world.listen(min(child.kill_at for child in world.children.values()) - time.monotonic())
        for child in [one for one in world.children.values() if one.kill_at <= time.monotonic()]:
            world.kill(child)
            world.start(child.role)
    for child in list(world.children.values()):
        world.kill(child)
    world.heal()
    world.problems += kill_books.problems(directory, world.acked)
    return world


def one_round(seed: int) -> Round:
    """One world of 250 kills, in a process of its own; for `make faults`."""
    return as_round(run_apart(seed=seed, kills=250), seed)


def run_apart(*, seed: int, kills: int, plant: str = "") -> dict[str, object]:
    """Run one world in a process that forks: pytest and the campaign have threads."""
    command = [sys.executable, __file__, "--seed", str(seed), "--kills", str(kills), "--plant", plant]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=kills * 2 + 200)
    if done.returncode:
        raise RuntimeError(f"the world ended with {done.returncode}: {done.stderr[-2_000:]}")
    told: dict[str, object] = json.loads(done.stdout)
    return told


def as_round(told: dict[str, object], seed: int) -> Round:
    """Return a world's figures as a round."""
    figures, problems = told["figures"], told["problems"]
    assert isinstance(figures, dict)
    assert isinstance(problems, list)
    return Round(Counter(figures), [f"kills seed {seed}: {problem}" for problem in problems])


def main(argv: list[str]) -> int:
    """Run one world and print what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--plant", default="")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tidewire-kills-") as directory:
        world = run_world(Path(directory), seed=arguments.seed, kills=arguments.kills, plant=arguments.plant)
        figures = world.kills + kill_books.figures(Path(directory), world.acked)
        figures["dead letters redriven"] += world.said["redriven"]
    print(json.dumps({"figures": figures, "problems": world.problems[:20]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
