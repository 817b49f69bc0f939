"""``python -m tidewire.testing.simulation``: many worlds, or one that is looked at; see docs/simulation.md."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from tidewire.clock import SystemClock
from tidewire.testing.simulation.campaign import Campaign, Failure, equal_replays, replayed, run_worlds
from tidewire.testing.simulation.exhaustive import crash_everywhere
from tidewire.testing.simulation.proof import write_summary
from tidewire.testing.simulation.worlds import Report, World, drawn_world

STATE = Path("build/simulation.json")
_SAVE_EVERY = 5.0


def main() -> int:
    """Do what the command line says; 0 if no promise was broken."""
    options = _parser().parse_args()
    if options.signatures:
        return _signatures(options.signatures, options.ground)
    if options.seed is not None or options.world:
        return _look_at_one(options)
    if options.replays:
        return _replays(options)
    if options.crashes:
        return _crashes(options)
    return _many(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tidewire.testing.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many worlds (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time (default: cores)")
    parser.add_argument("--ground", default="", help="the broker and stores, instead of what each seed draws")
    parser.add_argument("--summary", type=Path, help="write the figures into this page, between its markers")
    parser.add_argument("--fresh", action="store_true", help="do not continue an earlier run")
    parser.add_argument("--replays", type=int, default=0, metavar="N", help="run N seeds twice and compare them")
    parser.add_argument("--crashes", action="store_true", help="die at every point of one fixed scenario, one by one")
    parser.add_argument("--every", type=int, default=1, help="with --crashes: at every so-manieth point only")
    parser.add_argument("--seed", type=int, help="run one world and print what was broken")
    parser.add_argument("--world", help="the same, for a world in JSON, as a failure prints it")
    parser.add_argument("--history", action="store_true", help="with --seed or --world: print all that happened")
    parser.add_argument("--log", action="store_true", help="with --seed or --world: print the services' logs")
    parser.add_argument("--signatures", help=argparse.SUPPRESS)
    return parser


def _many(options: argparse.Namespace) -> int:
    label = _commit()
    if options.fresh:
        STATE.unlink(missing_ok=True)
    campaign = Campaign(STATE, label=label, start=options.start, seeds=options.seeds, ground=options.ground)
    if campaign.resumed:
        _say(f"going on: {campaign.resumed} of {options.seeds} worlds are done")
    progress = _Progress(campaign, options.seeds)
    worlds = (drawn_world(seed, ground=options.ground) for seed in campaign.left())
    stopped = False
    try:
        run_worlds(worlds, progress.hear, jobs=options.jobs)
    except KeyboardInterrupt:
        stopped = True
    campaign.save()
    totals = campaign.totals
    progress.tell()
    if options.summary is not None:
        write_summary(options.summary, totals, label=label, start=options.start, at=SystemClock().now())
        _say(f"wrote {options.summary}")
    if stopped:
        _say("stopped; the same command goes on from here")
        return 130
    print(
        f"{totals.worlds} worlds ({totals.calm} without faults), {totals.points} crash points, {totals.kills} kills, "
        f"{sum(totals.faults.values())} faults, {totals.seconds / 3600:.1f} virtual hours, "
        f"{len(totals.failures)} failures"
    )
    return 1 if totals.failures else 0


class _Progress:
    """Tells how far it is, and of every failure at once."""

    def __init__(self, campaign: Campaign, seeds: int) -> None:
        self._campaign = campaign
        self._seeds = seeds
        self._began = self._told = time.monotonic()
        self._first = campaign.resumed

    def hear(self, world: World, report: Report) -> None:
        self._campaign.add(world, report)
        if report.violations:
            _tell_failure(Failure(world, tuple(report.violations)))
        if time.monotonic() - self._told > _SAVE_EVERY:
            self._campaign.save()
            self.tell()

    def tell(self) -> None:
        self._told = time.monotonic()
        totals = self._campaign.totals
        rate = (totals.worlds - self._first) / max(self._told - self._began, 1e-6)
        _say(
            f"{totals.worlds}/{self._seeds} worlds, {rate:.1f}/s, {totals.points:,} crash points, "
            f"{totals.kills} kills, "
            f"{sum(totals.faults.values())} faults, {len(totals.failures)} failures"
        )


def _look_at_one(options: argparse.Namespace) -> int:
    if options.world:
        world = msgspec.json.decode(options.world, type=World)
    else:
        world = drawn_world(options.seed, ground=options.ground)
    if options.log:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    else:
        logging.disable(logging.CRITICAL)
    report, history = replayed(world)
    if options.history:
        print(history.encode().decode())
    for violation in report.violations:
        print(violation)
    print(f"seed {report.seed} on {report.ground}: {len(report.violations)} violations, signature {report.signature}")
    sys.stdout.flush()
    os._exit(1 if report.violations else 0)


def _replays(options: argparse.Namespace) -> int:
    different = equal_replays(options.start, options.replays, ground=options.ground)
    for seed in different:
        print(f"seed {seed} does not run alike twice")
    print(f"{options.replays - len(different)} of {options.replays} seeds ran alike in two processes")
    return 1 if different else 0


def _crashes(options: argparse.Namespace) -> int:
    totals = crash_everywhere(ground=options.ground or "memory", every=options.every, jobs=options.jobs)
    for failure in totals.failures:
        _tell_failure(failure)
    print(f"{totals.worlds} crash points of one scenario, one by one: {len(totals.failures)} failures")
    return 1 if totals.failures else 0


def _signatures(span: str, ground: str) -> int:
    start, count = map(int, span.split(":"))
    found: dict[int, str] = {}
    worlds = (drawn_world(seed, ground=ground) for seed in range(start, start + count))
    run_worlds(worlds, lambda world, report: found.update({world.seed: report.signature}))
    print("\n".join(found[seed] for seed in sorted(found)))
    return 0


def _tell_failure(failure: Failure) -> None:
    seed = failure.world.seed
    _say(f"\nseed {seed} on {failure.world.ground} broke {len(failure.violations)} promises:")
    for violation in failure.violations[:10]:
        _say(f"  {violation}")
    _say(f"  world: {msgspec.json.encode(failure.world).decode()}")
    _say(f"  again: python -m tidewire.testing.simulation --history --world '{_short(failure.world)}'\n")


def _short(world: World) -> str:
    return msgspec.json.encode(world).decode()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _commit() -> str:
    """Return the commit that is checked out, with a plus if files differ from it; nothing outside of a repository."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(  # noqa: S603
            ["git", "-C", str(here), "describe", "--always", "--dirty=+"],  # noqa: S607
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
