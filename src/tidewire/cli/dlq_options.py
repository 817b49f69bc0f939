"""What the verbs of ``tidewire dlq`` share: which letters, what is asked before anything changes, results in words."""

from __future__ import annotations

import argparse
import getpass
import re
import socket
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from tidewire.cli.brokers import broker_parser, duration
from tidewire.cli.exits import CommandParser
from tidewire.clock import SystemClock
from tidewire.errors import ConfigurationError
from tidewire.model import Reason
from tidewire.operations.audit import Operator
from tidewire.operations.redrive import Done, Plan
from tidewire.operations.selection import Selection

__all__ = [
    "acting_parser",
    "agreed",
    "clean",
    "done_document",
    "operator",
    "plan_document",
    "print_done",
    "print_plan",
    "selecting_parser",
    "selection_of",
    "selects",
]

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_FILTERS = ("topic", "group", "type", "reason", "error", "key", "older_than", "newer_than")


def selecting_parser(verb: str, description: str, *, examples: str, positional: bool = False) -> CommandParser:
    """Return the parser of a verb that takes a selection; with *positional*, ids may be named without an option."""
    parser = broker_parser(f"tidewire dlq {verb}", description, epilog=f"examples:\n{examples}")
    which = parser.add_argument_group("which letters", "everything that is given must hold")
    if positional:
        which.add_argument("ids", nargs="*", metavar="ID", help="ids of events")
    else:
        which.add_argument(
            "--id", dest="ids", action="append", metavar="ID", help="the id of an event; may be repeated"
        )
    which.add_argument("--topic", metavar="TOPIC", help="of this topic")
    which.add_argument("--group", metavar="GROUP", help="of this group")
    which.add_argument("--type", metavar="TYPE", help="of this event type")
    reasons = [reason.value for reason in Reason]
    which.add_argument("--reason-is", dest="reason", choices=reasons, metavar="REASON", help=", ".join(reasons))
    which.add_argument("--error", metavar="TEXT", help="with this text in the detail or in an error, whatever its case")
    which.add_argument("--key", metavar="KEY", help="of this key")
    which.add_argument("--older-than", type=duration, metavar="TIME", help="given up on longer ago: 90s, 15m, 2h, 7d")
    which.add_argument("--newer-than", type=duration, metavar="TIME", help="given up on since then")
    return parser


def acting_parser(verb: str, description: str, *, examples: str) -> CommandParser:
    """Return the parser of a verb that changes what it selects: with ``--all``, ``--dry-run`` and ``--yes``."""
    parser = selecting_parser(verb, description, examples=examples, positional=True)
    parser.add_argument("--all", action="store_true", help="every dead letter of the broker")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and change nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def selection_of(options: argparse.Namespace, *, now: int, must_say: bool = False) -> Selection:
    """Return the selection in *options*; ages are counted from *now*, in µs.

    Raises:
        ConfigurationError: with *must_say*, nothing was selected and ``--all`` was not given, or both were.
    """
    if must_say and selects(options) == options.all:
        raise ConfigurationError(
            "--all and a selection contradict each other" if options.all else "no letters were selected",
            hint="name ids, use --topic, --group, --type, --reason-is, --error, --key, or say --all",
        )
    older, newer = options.older_than, options.newer_than
    return Selection(
        topic=options.topic or "",
        group=options.group or "",
        type=options.type or "",
        reason=options.reason or "",
        error=options.error or "",
        key=options.key,
        ids=tuple(options.ids or ()),
        before=None if older is None else now - int(older.total_seconds() * 1e6),
        after=None if newer is None else now - int(newer.total_seconds() * 1e6),
    )


def selects(options: argparse.Namespace) -> bool:
    """Whether *options* narrow the selection."""
    return any(getattr(options, name) not in (None, [], "") for name in ("ids", *_FILTERS))


def operator() -> Operator:
    """Return who is acting: the user of this process, on this machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "unknown"
    return Operator(f"{user}@{socket.gethostname()}", SystemClock())


def agreed(options: argparse.Namespace, question: str) -> bool:
    """Ask on the terminal, unless ``--yes`` was given.

    Raises:
        ConfigurationError: there is no terminal to ask on.
    """
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigurationError(
            "there is no terminal to ask on, so nothing was changed", hint="--yes does it unasked, --dry-run looks"
        )
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing changed", file=sys.stderr)
    return False


def clean(text: str, *, width: int = 0) -> str:
    """Return *text* with what would steer a terminal made visible, on one line, cut to *width* where one is given."""
    shown = _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)
    return shown if not width or len(shown) <= width else shown[: width - 1] + "…"


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return *plan* as ``--json`` prints it."""
    return {
        "dry_run": True,
        "planned": plan.count,
        "followers": plan.followers,
        "beyond_dedup_window": plan.unfit,
        "channels": [{"topic": part.topic, "group": part.group, "count": part.count} for part in plan.parts],
        "sample": list(plan.sample),
    }


def print_plan(plan: Plan, verb: str) -> None:
    """Say on stderr what would happen."""
    count = f"{plan.count} dead letter{'' if plan.count == 1 else 's'}"
    print(f"{verb} {count}:", file=sys.stderr)
    for part in plan.parts:
        keys = f", {len(part.keys)} held key{'' if len(part.keys) == 1 else 's'} as a whole" if part.keys else ""
        print(f"  {part.count} of group {part.group} on topic {part.topic}{keys}", file=sys.stderr)
    if plan.followers:
        print(f"  {plan.followers} of them because the rest of their key goes, in order", file=sys.stderr)
    if plan.unfit:
        print(f"  {plan.unfit} of them are older than the dedup window: effects may happen again", file=sys.stderr)
    more = "" if plan.count - plan.followers <= len(plan.sample) else " …"
    print(f"  ids: {', '.join(clean(name) for name in plan.sample)}{more}", file=sys.stderr)


def done_document(done: Done) -> dict[str, Any]:
    """Return *done* as ``--json`` prints it."""
    return {
        "dry_run": False,
        "act": done.act_id,
        "changed": done.changed,
        "planned": done.planned,
        "moved": done.moved,
        "left": done.left,
        "dead": done.dead,
        "refused": msgspec.to_builtins(done.refused),
    }


def print_done(done: Done, verb: str) -> None:
    """Print what was seen after the act."""
    print(f"{verb} {done.moved} of {done.planned} dead letters" if done.changed else "nothing changed")
    if done.left:
        print(f"{done.left} of the planned ones are still dead letters")
    for refused in _shown(done):
        print(f"  the broker refused {refused}")
    if done.dead is not None:
        print(f"{done.dead} dead letters there now")


def _shown(done: Done) -> Sequence[str]:
    return [
        clean(" ".join(part for part in (one.event_id, one.status, one.reason, one.detail) if part), width=200)
        for one in done.refused
    ]
