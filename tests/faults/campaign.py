"""``make faults``: long runs of the fault tests, bounded in time, resumable, with figures in build/faults.json.

    python tests/faults/campaign.py [CAMPAIGN …] [--seconds N] [--fresh]

Rounds are numbered and the number is the seed: a run goes on where the last one stopped, until the campaign's target
is reached. A violation is printed with its seed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from fault_rounds import NotPossible, Round

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "faults.json"


class Campaign(NamedTuple):
    """Where a round lives, and the figure that is to reach a number."""

    module: str
    figure: str
    target: int


CAMPAIGNS = {
    "power-loss": Campaign("power_loss", "power-loss states", 100_000),
    "kills": Campaign("kills", "kills", 10_000),
    "storms": Campaign("kafka_storm", "brokers killed", 1_000),
    "rabbitmq-storms": Campaign("rabbitmq_storm", "brokers killed", 200),
    "rabbitmq-cluster-storms": Campaign("rabbitmq_cluster_storm", "nodes killed", 200),
    "relays": Campaign("relay_fleet", "events relayed by a fleet", 100_000),
    "outbox": Campaign("outbox_rounds", "rows committed out of order", 1_000_000),
    "hostile": Campaign("hostile", "hostile messages", 100_000),
    "fuzz": Campaign("fuzzing", "fuzz executions", 10_000_000),
}


def main(argv: Sequence[str]) -> int:
    """Run campaigns and return the exit status."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__.splitlines()[0])
    parser.add_argument("campaign", nargs="*", metavar="CAMPAIGN", help=f"of {', '.join(CAMPAIGNS)}; default: all")
    parser.add_argument("--seconds", type=float, default=300.0, help="for each campaign (300)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rounds")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.campaign) - set(CAMPAIGNS))
    if unknown:
        parser.error(f"there is no campaign {', '.join(unknown)}; there are: {', '.join(CAMPAIGNS)}")
    names = arguments.campaign or list(CAMPAIGNS)
    if arguments.fresh:
        for name in names:
            keep(name, None)
    outcomes = [run(name, arguments.seconds) for name in names]
    for name in names:
        print(line(name, remembered().get(name, {})))
    return 0 if all(outcomes) else 1


def run(name: str, seconds: float) -> bool:
    """Run rounds of one campaign until its target or for *seconds*; False if anything was violated or impossible."""
    campaign = CAMPAIGNS[name]
    one_round: Callable[[int], Round] = import_module(campaign.module).one_round
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = remembered().get(name) or {"rounds": 0, "seconds": 0.0, "figures": {}, "violations": []}
        if state["figures"].get(campaign.figure, 0) >= campaign.target:
            break
        started, seed = time.monotonic(), state["rounds"] + 1
        try:
            done = one_round(seed)
        except NotPossible as error:
            print(f"!!! NOT PROVEN: {name}: {error}", file=sys.stderr)
            return False
        figures = added(Counter(state["figures"]), done.figures)
        keep(
            name,
            {
                "rounds": seed,
                "seconds": round(state["seconds"] + time.monotonic() - started, 1),
                "figures": dict(figures),
                "target": campaign.target,
                "violations": [*state["violations"], *done.violations],
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": commit(),
            },
        )
        print(f"{name} round {seed}: {figures[campaign.figure]:,} of {campaign.target:,} {campaign.figure}", flush=True)
        for violation in done.violations:
            print(f"VIOLATION: {violation}", flush=True)
    return not remembered().get(name, {}).get("violations")


def added(before: Counter[str], more: Counter[str]) -> Counter[str]:
    """Return the sum; of a figure that is called "most …", the larger one."""
    most = {name: max(before[name], more[name]) for name in {**before, **more} if name.startswith("most ")}
    return Counter({**(before + more), **most})


def line(name: str, state: dict[str, Any]) -> str:
    """Return one campaign's figures in one line."""
    if not state:
        return f"{name}: nothing was run"
    figures = ", ".join(f"{count:,} {what}" for what, count in state["figures"].items())
    violations, rounds = len(state["violations"]), state["rounds"]
    return f"{name}: {figures}; {violations} violations; {rounds} rounds in {state['seconds']:.0f} s"


def remembered() -> dict[str, Any]:
    """Return what earlier runs left."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def keep(name: str, state: dict[str, Any] | None) -> None:
    """Write one campaign's figures; another process may be running another campaign."""
    RESULTS.parent.mkdir(exist_ok=True)
    kept = remembered()
    kept.pop(name, None)
    if state is not None:
        kept[name] = state
    draft = RESULTS.with_suffix(f".{name}.new")
    draft.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
    draft.replace(RESULTS)


def commit() -> str:
    """Return the commit that is checked out, with a + if files were changed."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
