"""``tidewire doctor``: what is wrong with this environment, its broker and its store, each with the fix."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tidewire.cli.exits import FAILED, OK, CommandParser
from tidewire.cli.shown import emit, print_findings, print_points
from tidewire.clock import SystemClock
from tidewire.config import settings_from
from tidewire.errors import ConfigurationError
from tidewire.rules.findings import Section

__all__ = ["main"]

DESCRIPTION = """\
Look at versions, extras, settings, clock and limits, at the broker and the store: what is there, what is wrong, and
how to mend it. Nothing is created or changed.
"""
EPILOG = """\
examples:
  tidewire doctor
  tidewire doctor --store sqlite:///data/billing.db --full
  tidewire doctor --strict --json

exit codes:
  0  all is well (warnings may be told)
  1  something is wrong (with --strict, or may become so)
"""


def main(arguments: Sequence[str]) -> int:
    """Examine everything, print what was found, and return the exit code."""
    parser = CommandParser("tidewire doctor", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--broker", metavar="URL", help="the broker (default: the setting broker, TIDEWIRE_BROKER)")
    parser.add_argument("--store", metavar="URL", help="a service's own database (default: the setting store, or none)")
    parser.add_argument("--full", action="store_true", help="look for damage in files above 256 MiB, too")
    parser.add_argument("--strict", action="store_true", help="a warning counts as wrong")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, its keys documented and stable")
    options = parser.parse_all(arguments)
    # What looks at SQLite is loaded once it is clear that there is something to look at.
    from tidewire.operations.doctoring import is_well

    sections = asyncio.run(_examine(options.broker, options.store, full=options.full))
    well = is_well(sections, strict=options.strict)
    if options.json:
        emit({"well": well, "sections": sections})
    else:
        _print(sections, well=well)
    return OK if well else FAILED


async def _examine(broker: str | None, store: str | None, *, full: bool) -> list[Section]:
    """Examine the machine, the settings, and, where these can be, what they name."""
    from tidewire.operations.doctoring import examine_machine, examine_resources

    clock = SystemClock()
    sections = await examine_machine(clock)
    section = Section(name="settings")
    sections.append(section)
    try:
        settings = settings_from(broker=broker, store=store)
        resources = await examine_resources(settings, clock, full=full)
    except ConfigurationError as error:
        section.error("settings-wrong", error.message, fix=error.hint)
        return sections
    section.fact("state", "every one is known and can be")
    return sections + resources


def _print(sections: Sequence[Section], *, well: bool) -> None:
    for section in sections:
        print(section.name)
        print_points(section.facts.items())
        print()
    findings = [finding for section in sections for finding in section.findings]
    print_findings(findings)
    errors = sum(finding.level == "error" for finding in findings)
    counts = f"errors: {errors}, warnings: {len(findings) - errors}"
    print(f"all is well ({counts})" if well else f"something is wrong ({counts})")
