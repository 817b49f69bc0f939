"""The simulation is trusted because it finds planted bugs: here a share of them, the rest in `make planted`."""

from __future__ import annotations

import os
from itertools import takewhile

import pytest
from planted_bugs import PLANTS, Plant

from tidewire.testing.simulation.campaign import Totals, planted_run, run_worlds

# Bugs that some of the first worlds show, and the check that must be among those that find them.
SOON = {
    "ack_first": "C2",
    "no_inbox_mark": "C11",
    "mark_without_handler": "C2",
    "outbox_in_another_order": "C7",
    "commit_of_a_failed_handler": "C5",
    "dead_letters_are_dropped": "C2",
    "delays_are_forgotten": "C16",
    "keys_do_not_wait": "C7",
    "facts_are_not_told": "C20",
    "prefetch_without_limit": "C17",
    "one_attempt_too_few": "C10",
    "nobody_watches": "C18",
    "commits_are_not_synced": "C2",
    "new_names_are_not_synced": "C2",
}


def planted(name: str) -> Plant:
    """Return a plant by its name."""
    return next(one for one in PLANTS if one.name == name)


@pytest.mark.parametrize("name", SOON)
def test_a_planted_bug_is_found(name: str) -> None:
    """Each of these bugs breaks a promise in one of a few worlds, and the check that it is about says so."""
    totals, one = Totals(), planted(name)
    worlds = takewhile(lambda world: not totals.failures, one.worlds(range(60)))
    run_worlds(worlds, totals.add, jobs=os.cpu_count() or 1, batch=1, run=planted_run(one.plant), seconds_max=60)
    found = {violation.check for failure in totals.failures for violation in failure.violations}
    assert SOON[name] in found


def test_every_plant_names_its_hazard() -> None:
    """A plant has a name of its own, a hazard, and says what it does."""
    assert len(PLANTS) == len({one.name for one in PLANTS}) >= 40
    assert [] == [one.name for one in PLANTS if not one.hazard or not one.plant.__doc__]
