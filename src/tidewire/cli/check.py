"""``tidewire check module:service``: what is promised to every subscription, from the real settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from tidewire.cli.exits import FAILED, OK, UNAVAILABLE, CommandParser
from tidewire.cli.shown import emit, print_findings, print_points
from tidewire.cli.target import find_service
from tidewire.config import Settings, masked, settings_from
from tidewire.operations.checking import Examined, Report, check_services
from tidewire.rules.guarantees import Guarantee, Terms
from tidewire.rules.wording import sentences, terms_in_words

__all__ = ["main"]

DESCRIPTION = """\
Say what is promised to every subscription of some services, computed from the settings that `tidewire run` would use:
broker, store and the rest. Refuse what is unsafe, each with its fix. Nothing is created, changed or consumed.
"""
EPILOG = """\
examples:
  tidewire check shop.billing:billing
  tidewire check shop.billing:billing --broker sqlite:///data/broker.db --store sqlite:///data/billing.db
  tidewire check shop.billing:billing --offline --strict --json

exit codes:
  0  safe
  1  refused: there is an error (with --strict, or a warning)
  2  a person must change something: no such service, a setting that cannot be
  3  safe as far as could be seen, but the broker or the store is not there
"""


def main(arguments: Sequence[str]) -> int:
    """Check services, print what holds, and return the exit code.

    Raises:
        ConfigurationError: no such service, or a setting that cannot be.
    """
    parser = CommandParser("tidewire check", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("targets", nargs="+", metavar="module:service", help="where the services are")
    parser.add_argument("--broker", metavar="URL", help="the broker (default: the setting broker, TIDEWIRE_BROKER)")
    parser.add_argument(
        "--store", metavar="URL", help="the service's own database (default: the setting store, or none)"
    )
    parser.add_argument("--provision", action="store_true", help="as for a run that creates missing topics and groups")
    parser.add_argument("--offline", action="store_true", help="look at neither broker nor store")
    parser.add_argument("--strict", action="store_true", help="a warning is refused too")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, its keys documented and stable")
    options = parser.parse_all(arguments)
    settings = settings_from(broker=options.broker, store=options.store, provision=options.provision or None)
    services = [find_service(target) for target in dict.fromkeys(options.targets)]
    report = asyncio.run(check_services(services, settings, offline=options.offline))
    code = _exit_code(report, strict=options.strict)
    if options.json:
        emit(_document(report, settings, code))
    else:
        _print(report, settings, code)
    return code


def _exit_code(report: Report, *, strict: bool) -> int:
    if not report.safe or (strict and report.findings):
        return FAILED
    return UNAVAILABLE if report.unseen else OK


def _print(report: Report, settings: Settings, code: int) -> None:
    store = f"store {masked(settings.store)}" if settings.store else "no store"
    for each in report.services:
        print(f"{each.name}: broker {masked(settings.broker)}, {store}")
        for guarantee in each.guarantees:
            event = guarantee.event
            several = f", lists of up to {guarantee.batch}" if guarantee.batch else ""
            print(f"\n  {event.type} version {event.version} on topic {event.topic} → {guarantee.handler}{several}")
            print_points(sentences(guarantee, each.terms), indent=4)
        print("\n  all of it" if each.guarantees else "\n  it handles no integration event")
        print_points(terms_in_words(each.terms), indent=4)
        print()
    print_findings(report.findings)
    for unseen in report.unseen:
        print(f"not checked: {unseen}")
    errors = sum(finding.level == "error" for finding in report.findings)
    counts = f"errors: {errors}, warnings: {len(report.findings) - errors}"
    print({OK: f"safe ({counts})", FAILED: f"refused ({counts})", UNAVAILABLE: f"safe as far as seen ({counts})"}[code])


def _document(report: Report, settings: Settings, code: int) -> dict[str, Any]:
    return {
        "safe": code != FAILED,
        "broker": masked(settings.broker),
        "store": masked(settings.store) if settings.store else None,
        "services": [_service(each) for each in report.services],
        "findings": report.findings,
        "not_checked": report.unseen,
    }


def _service(each: Examined) -> dict[str, Any]:
    return {
        "name": each.name,
        "terms": _points(terms_in_words(each.terms)),
        "subscriptions": [_subscription(guarantee, each.terms) for guarantee in each.guarantees],
    }


def _subscription(guarantee: Guarantee, terms: Terms) -> dict[str, Any]:
    event = guarantee.event
    return {
        "handler": guarantee.handler,
        "type": event.type,
        "version": event.version,
        "topic": event.topic,
        "key": event.key,
        "effect": guarantee.effect,
        "ordering": guarantee.ordering,
        "fenced": guarantee.fenced,
        "on_dead_letter": guarantee.on_dead_letter,
        "attempts": guarantee.attempts,
        "waits_s": [wait.total_seconds() for wait in guarantee.waits],
        "timeout_s": guarantee.timeout.total_seconds(),
        "longest_s": guarantee.longest.total_seconds(),
        "max_hold_s": None if guarantee.max_hold is None else guarantee.max_hold.total_seconds(),
        "dedup_s": None if guarantee.dedup is None else guarantee.dedup.total_seconds(),
        "batch": guarantee.batch,
        "in_words": _points(sentences(guarantee, terms)),
    }


def _points(points: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {heading.replace(" ", "_"): sentence for heading, sentence in points}
