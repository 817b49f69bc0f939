"""Running many worlds: in child processes that are thrown away, over several cores, to be continued after a stop."""

from __future__ import annotations

import gc
import logging
import os
import resource
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from tidewire.testing.simulation.checkers import History, Violation
from tidewire.testing.simulation.places import sweep
from tidewire.testing.simulation.scenario import run_world
from tidewire.testing.simulation.worlds import Report, World

__all__ = ["Campaign", "Failure", "Totals", "equal_replays", "planted_run", "run_worlds"]

WORLD_SECONDS_MAX = 300
BATCH = 20
_PATIENCE = 20
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Report).decode


class Failure(msgspec.Struct, frozen=True):
    """A world that broke a promise."""

    world: World
    violations: tuple[Violation, ...]


class Totals(msgspec.Struct, kw_only=True):
    """What many worlds came to. *points* is how many there were to die at; *seconds* are virtual."""

    worlds: int = 0
    calm: int = 0
    points: int = 0
    steps: int = 0
    seconds: float = 0.0
    kills: int = 0
    faults: dict[str, int] = {}
    ops: dict[str, int] = {}
    grounds: dict[str, int] = {}
    failures: list[Failure] = []

    def add(self, world: World, report: Report) -> None:
        """Add one world."""
        self.worlds += 1
        self.calm += not report.faults
        self.points += report.points
        self.steps += report.steps
        self.seconds += report.seconds
        self.kills += report.faults.get("kill", 0)
        self.grounds[report.ground] = self.grounds.get(report.ground, 0) + 1
        for into, what in ((self.faults, report.faults), (self.ops, report.counts)):
            for name, count in what.items():
                into[name] = into.get(name, 0) + count
        if report.violations:
            self.failures.append(Failure(world, tuple(report.violations)))


def run_worlds(
    worlds: Iterator[World],
    on_report: Callable[[World, Report], None],
    *,
    jobs: int = 1,
    batch: int = BATCH,
    run: Callable[[World], Report] = run_world,
    seconds_max: int = WORLD_SECONDS_MAX,
) -> None:
    """Run *worlds* in children, at most *jobs* at a time, and pass each report on as it comes.

    A child that dies or hangs in a world is that world's failure; the rest of its batch is run by another.
    """
    with selectors.DefaultSelector() as selector:
        waiting: list[list[World]] = []
        children = 0
        while True:
            while children < jobs and (worlds_now := waiting.pop() if waiting else list(islice(worlds, batch))):
                child = _Child(worlds_now, run, seconds_max)
                selector.register(child.pipe, selectors.EVENT_READ, child)
                children += 1
            if not children:
                return
            for key, _ in selector.select():
                child = key.data
                for world, report in child.read():
                    on_report(world, report)
                if child.ended:
                    selector.unregister(child.pipe)
                    children -= 1
                    failed, rest = child.close()
                    if failed is not None:
                        on_report(*failed)
                    if rest:
                        waiting.append(rest)


def planted_run(plant: Callable[[], None]) -> Callable[[World], Report]:
    """Return a way to run worlds in which *plant* has changed something; it is called once in each child."""
    planted: list[bool] = []

    def run(world: World) -> Report:
        if not planted:
            planted.append(True)
            plant()
        return run_world(world)

    return run


class _Child:
    """A forked process that runs a batch and reports over a pipe."""

    def __init__(self, worlds: Sequence[World], run: Callable[[World], Report], seconds_max: int) -> None:
        self._worlds = list(worlds)
        self._done = 0
        self._rest = b""
        self.ended = False
        self.pipe, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(self._worlds, write, run, seconds_max=seconds_max)
        os.close(write)

    def read(self) -> Iterator[tuple[World, Report]]:
        """Give the reports that have come."""
        data = os.read(self.pipe, 1 << 16)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            world = self._worlds[self._done]
            self._done += 1
            yield world, _decode(line)

    def close(self) -> tuple[tuple[World, Report] | None, list[World]]:
        """Reap the child; return the world it died in, if it did, and those it did not come to."""
        os.close(self.pipe)
        _, status = os.waitpid(self._pid, 0)
        sweep(self._pid)
        left = self._worlds[self._done :]
        if not left:
            return None, []
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            why = "hung" if number in (signal.SIGALRM, signal.SIGPROF) else f"died of signal {number}"
        else:
            why = f"the process ended with {os.WEXITSTATUS(status)}"
        return (left[0], _broken(left[0], why)), left[1:]


def _serve(worlds: Sequence[World], pipe: int, run: Callable[[World], Report], *, seconds_max: int) -> None:
    """Run *worlds* in this child and leave, without a single destructor."""
    gc.disable()
    logging.disable(logging.CRITICAL)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # files of the dead stay open
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    status = 1
    try:
        for world in worlds:
            signal.setitimer(signal.ITIMER_PROF, seconds_max)  # of the processor: others may want it too
            signal.alarm(seconds_max * _PATIENCE)
            line = _encode(run(world)) + b"\n"
            while line:
                line = line[os.write(pipe, line) :]
        status = 0
    finally:
        os._exit(status)


def _broken(world: World, why: str) -> Report:
    return Report(seed=world.seed, ground=world.ground, violations=(Violation("world", why),))


class Campaign:
    """A number of seeds, run batch by batch, whose state is in a file: what was done need not be done again.

    *label* says what was run (the commit); a state of another label, or of other seeds, is not continued.
    """

    def __init__(self, state: Path, *, label: str, start: int, seeds: int, ground: str) -> None:
        self._path = state
        self._name = (label, start, seeds, ground)
        self.totals = Totals()
        self._done: set[int] = set()
        if state.is_file():
            kept = msgspec.json.decode(state.read_bytes(), type=_State)
            if (kept.label, kept.start, kept.seeds, kept.ground) == self._name:
                self.totals, self._done = kept.totals, set(kept.done)

    @property
    def resumed(self) -> int:
        """How many worlds were done by an earlier run."""
        return len(self._done)

    def left(self) -> Iterator[int]:
        """Give the seeds that are not done."""
        _, start, seeds, _ = self._name
        done = frozenset(self._done)
        return (seed for seed in range(start, start + seeds) if seed not in done)

    def add(self, world: World, report: Report) -> None:
        """Take a report in."""
        self._done.add(world.seed)
        self.totals.add(world, report)

    def save(self) -> None:
        """Write the state, complete or not at all."""
        label, start, seeds, ground = self._name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".new")
        state = _State(
            label=label, start=start, seeds=seeds, ground=ground, totals=self.totals, done=sorted(self._done)
        )
        draft.write_bytes(_encode(state))
        draft.replace(self._path)


class _State(msgspec.Struct, kw_only=True):
    label: str
    start: int
    seeds: int
    ground: str
    totals: Totals
    done: list[int]


def equal_replays(start: int, count: int, *, ground: str = "") -> list[int]:
    """Run *count* seeds in two processes with different hash seeds; return those that ran differently."""
    command = [sys.executable, "-m", "tidewire.testing.simulation", "--signatures", f"{start}:{count}"]
    command += ["--ground", ground] if ground else []
    running = [
        subprocess.Popen(  # noqa: S603 - this very package, with numbers
            ["/usr/bin/env", f"PYTHONHASHSEED={seed}", *command], stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "4242")
    ]
    found = [process.communicate()[0].split() for process in running]
    assert len(found[0]) == len(found[1]) == count, "a process did not run all of its seeds"
    return [start + index for index, (one, other) in enumerate(zip(*found, strict=True)) if one != other]


def replayed(world: World) -> tuple[Report, History]:
    """Run one world here, and return its history too. The process should end by ``os._exit`` afterwards."""
    gc.disable()
    history = History()
    return run_world(world, history=history), history
