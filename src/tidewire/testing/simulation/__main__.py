"""``python -m tidewire.testing.simulation``: many worlds, or one that is looked at; see docs/simulation.md."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec

from tidewire.clock import SystemClock
from tidewire.testing.simulation.campaign import Campaign, Failure, equal_replays, replayed, run_worlds
from tidewire.testing.simulation.exhaustive import crash_everywhere
from tidewire.testing.simulation.models.catalogue import MODELS
from tidewire.testing.simulation.proof import commit, told, write_section, write_summary
from tidewire.testing.simulation.worlds import Report, World, drawn_world

STATE = Path("build/simulation.json")
_SAVE_EVERY = 5.0
_REPLAYS = """## Replays

A seed is run in two processes with different hash seeds; all that happened, and every step, is compared.

| Measure | Figure |
| --- | --- |
{rows}
"""
_CRASHES = """## A death at every point

One fixed scenario of twelve orders is run once for each point that it has, with a death there and nowhere else.
On files it is run again with a power loss there.

| Measure | Figure |
| --- | --- |
{rows}
"""


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
    label = commit()
    if options.fresh:
        STATE.unlink(missing_ok=True)
    campaign = Campaign(STATE, label=label, start=options.start, seeds=options.seeds, ground=options.ground)
    if campaign.resumed:
        _say(f"going on: {campaign.resumed} of {options.seeds} worlds are done")
    progress = _Progress(campaign, options.seeds)
    worlds = (drawn_world(seed, ground=options.ground) for seed in campaign.left())
    stopped = False
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets what runs in the background ignore the first
        signal.signal(number, signal.default_int_handler)
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
    if options.summary is not None:
        seeds = range(options.start, options.start + options.replays)
        grounds = Counter(drawn_world(seed, ground=options.ground).ground for seed in seeds)
        names = ", ".join(f"{name} {count:,}" for name, count in sorted(grounds.items()))
        rows = (
            f"| equal, to the last step | {options.replays - len(different):,} of {options.replays:,} |\n"
            f"| seeds | from {options.start:,} on; {names} |\n{told()}"
        )
        write_section(options.summary, "replays", section=_REPLAYS.format(rows=rows))
    return 1 if different else 0


def _crashes(options: argparse.Namespace) -> int:
    """Die at every point: on one ground, or on each, and by power losses on files."""
    grounds = [options.ground] if options.ground else ["memory", *MODELS, "sqlite"]
    runs = [(name, 0.0) for name in grounds] + [("sqlite", 1.0)] * ("sqlite" in grounds)
    rows: list[str] = []
    failed = 0
    for ground, power in runs:
        totals = crash_everywhere(ground=ground, every=options.every, jobs=options.jobs, power=power)
        for failure in totals.failures:
            _tell_failure(failure)
        failed += len(totals.failures)
        share = f", each {options.every}th point" * (options.every > 1)
        how = f"{ground}, {'power losses' if power else 'deaths'}{share}"
        print(f"{how}: {totals.worlds} points, one by one: {len(totals.failures)} failures", flush=True)
        rows.append(f"| {how} | {totals.worlds:,} points, {len(totals.failures):,} broke a promise |")
    if options.summary is not None:
        write_section(options.summary, "crashes", section=_CRASHES.format(rows="\n".join([*rows, told()])))
    return 1 if failed else 0


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


if __name__ == "__main__":
    sys.exit(main())
