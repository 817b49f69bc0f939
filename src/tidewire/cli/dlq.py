"""``tidewire dlq``: dead letters seen, given back to their group, mended, kept in files, or given up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tidewire.cli import dlq_act, dlq_files, dlq_look
from tidewire.cli.exits import OK, USAGE, CommandParser, did_you_mean, tell

__all__ = ["VERBS", "main"]


class Verb(NamedTuple):
    """One verb: what runs it, its parser, its one line."""

    run: Callable[[Sequence[str]], int]
    parser: Callable[[], CommandParser]
    line: str


VERBS: dict[str, Verb] = {
    "list": Verb(dlq_look.listed, dlq_look.list_parser, "list and count them"),
    "show": Verb(dlq_look.show, dlq_look.show_parser, "one of them: headers, body, errors, what waits behind it"),
    "groups": Verb(dlq_look.groups, dlq_look.groups_parser, "count them by cause"),
    "redrive": Verb(dlq_act.redriven, dlq_act.redrive_parser, "give them back to the group that gave up on them"),
    "discard": Verb(dlq_act.discarded, dlq_act.discard_parser, "give them up for good, with a reason"),
    "edit": Verb(dlq_act.edited, dlq_act.edit_parser, "send a mended copy of one to its group"),
    "export": Verb(dlq_files.exported, dlq_files.export_parser, "write them to a file"),
    "import": Verb(dlq_files.imported, dlq_files.import_parser, "put them back from a file"),
    "audit": Verb(dlq_look.audit, dlq_look.audit_parser, "who did what to them"),
}

USAGE_TEXT = """\
usage: tidewire dlq VERB ...

Dead letters: messages that a group has given up on, kept until a person redrives or discards them.

verbs:
{verbs}

`tidewire dlq VERB --help` tells what a verb takes. In short:

{usages}
examples:
  tidewire dlq groups --group billing
  tidewire dlq redrive --group billing --error timeout --rate 50 --dry-run

exit codes:
  0    done, or there was nothing to do
  1    not done, or not all: the broker refused letters, no letter has the id, the question was answered with no
  2    a person must change something: arguments, settings, a damaged file
  3    the broker is unavailable: time may help
"""


def main(arguments: Sequence[str]) -> int:
    """Run one verb and return its exit code.

    Raises:
        ConfigurationError: a selection, a file or a setting cannot be.
        TransportUnavailable, TransportRefused: the broker cannot be used.
    """
    if not arguments:
        print(_usage(), end="", file=sys.stderr)
        return USAGE
    name, *rest = arguments
    if name in ("-h", "--help", "help"):
        print(_usage(), end="")
        return OK
    if name not in VERBS:
        tell(f"dlq has no verb {name!r}", hint=did_you_mean(name, VERBS) or "`tidewire dlq --help` lists the verbs")
        return USAGE
    return VERBS[name].run(rest)


def _usage() -> str:
    verbs = "\n".join(f"  {name:<8} {verb.line}" for name, verb in VERBS.items())
    usages = "".join(_short(verb.parser()) for verb in VERBS.values())
    return USAGE_TEXT.format(verbs=verbs, usages=usages)


def _short(parser: CommandParser) -> str:
    """Return the usage of *parser*, without its first word and as far left as that allows."""
    first, *rest = parser.format_usage().removeprefix("usage: ").splitlines(keepends=True)
    return first + "".join(line.removeprefix(" " * len("usage: ")) for line in rest)
