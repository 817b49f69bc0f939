"""``tidewire dlq redrive | discard | edit``: print the plan, ask, act, and say what was seen afterwards."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tidewire.cli.brokers import Broker, broker_parser, run_with_broker
from tidewire.cli.dlq_options import (
    acting_parser,
    agreed,
    clean,
    done_document,
    operator,
    plan_document,
    print_done,
    print_plan,
    selection_of,
    selects,
)
from tidewire.cli.exits import FAILED, OK, CommandParser
from tidewire.cli.shown import emit, stamp
from tidewire.clock import SystemClock
from tidewire.errors import ConfigurationError
from tidewire.operations.editing import BodyFrom, edit, edited_copy, set_fields, value_of
from tidewire.operations.letters import Shown, show_letters
from tidewire.operations.redrive import Done, Pace, Plan, discard, interrupted_redrives, plan_letters, redrive, resume

__all__ = ["discard_parser", "discarded", "edit_parser", "edited", "redrive_parser", "redriven"]


def redrive_parser() -> CommandParser:
    """Return the parser of ``dlq redrive``."""
    parser = acting_parser(
        "redrive",
        "Give dead letters back to the group that gave up on them, and to no other. A letter of a held key takes its\n"
        "whole key along, in order.",
        examples="  tidewire dlq redrive 0199e3c2-7e21-7d4e-9c58-5f0a3b1f2d11\n"
        "  tidewire dlq redrive --group billing --error timeout --rate 50 --dry-run\n"
        "  tidewire dlq redrive --resume --yes",
    )
    parser.add_argument("--only", action="store_true", help="nothing but what is selected, held keys or not")
    parser.add_argument("--rate", type=float, metavar="N", help="at most N letters a second")
    parser.add_argument("--force", action="store_true", help="also letters older than the dedup window of 35 days")
    parser.add_argument("--resume", action="store_true", help="go on with redrives that were interrupted")
    return parser


def redriven(arguments: Sequence[str]) -> int:
    """Redrive dead letters, and return the exit code."""
    options = redrive_parser().parse_all(arguments)
    pace = Pace(options.rate)

    async def act(broker: Broker) -> int:
        if options.resume:
            if selects(options) or options.all:
                raise ConfigurationError("--resume goes by the plans that were begun", hint="leave the selection out")
            return await _resumed(broker, options, pace)
        plan = await _planned(broker, options, whole_keys=not options.only)
        if plan.unfit and not options.force and not options.dry_run:
            await redrive(broker, plan, by=operator())  # refuses, and says why
        if not _goes_on(plan, options, "redrive"):
            return OK if options.dry_run or not plan.count else FAILED
        meter = _Meter("redriven")
        done = await redrive(broker, plan, by=operator(), pace=pace, force=options.force, progress=meter.at)
        meter.end()
        return _told(done, options, "redriven")

    return run_with_broker(options, act)


def discard_parser() -> CommandParser:
    """Return the parser of ``dlq discard``."""
    parser = acting_parser(
        "discard",
        "Give dead letters up for good: their handlers never run, and nothing of their keys waits for them any more.",
        examples="  tidewire dlq discard 0199e3c2-7e21-7d4e-9c58-5f0a3b1f2d11 --reason 'a test order'",
    )
    parser.add_argument(
        "--reason", dest="because", required=True, metavar="TEXT", help="why; it is written to the audit"
    )
    return parser


def discarded(arguments: Sequence[str]) -> int:
    """Discard dead letters, and return the exit code."""
    parser = discard_parser()
    options = parser.parse_all(arguments)
    if not options.because.strip():
        parser.error("--reason says nothing")

    async def act(broker: Broker) -> int:
        plan = await _planned(broker, options, whole_keys=False)
        if not _goes_on(plan, options, "discard for good"):
            return OK if options.dry_run or not plan.count else FAILED
        meter = _Meter("discarded")
        done = await discard(broker, plan, by=operator(), reason=options.because, progress=meter.at)
        meter.end()
        return _told(done, options, "discarded")

    return run_with_broker(options, act)


def edit_parser() -> CommandParser:
    """Return the parser of ``dlq edit``."""
    parser = broker_parser(
        "tidewire dlq edit",
        "Send a mended copy of a dead letter to its group. The copy has an id of its own and a header that names the\n"
        "original, which stays where it is unless --discard-original is given.",
        epilog="examples:\n  tidewire dlq edit ID --set total=12.50 --set lines[0].sku='\"A-7\"'\n"
        "  tidewire dlq edit ID --body mended.json --discard-original --reason 'the total was missing'",
    )
    parser.add_argument("id", metavar="ID", help="the id of the event")
    parser.add_argument("--topic", default="", metavar="TOPIC", help="where it has letters on several topics")
    parser.add_argument("--group", default="", metavar="GROUP", help="where several groups gave up on it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="a field; VALUE is JSON, else taken as text"
    )
    parser.add_argument("--body", metavar="FILE", help="the whole new body; - for standard input")
    parser.add_argument("--discard-original", action="store_true", help="give the original up; needs --reason")
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for the audit")
    parser.add_argument("--dry-run", action="store_true", help="print the new body and change nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def edited(arguments: Sequence[str]) -> int:
    """Send a mended copy of a dead letter, and return the exit code."""
    parser = edit_parser()
    options = parser.parse_all(arguments)
    if bool(options.set) == bool(options.body):
        parser.error("give either --set or --body")
    if options.discard_original and not options.reason.strip():
        parser.error("--discard-original needs --reason")
    new_body = _body_from(options)

    async def act(broker: Broker) -> int:
        shown = await _one(broker, options)
        copy = edited_copy(shown.letter, new_body, event_id="dry-run")
        _print_edit(shown, copy.body, options)
        if options.dry_run:
            if options.json:
                emit({"dry_run": True, "original": options.id, "body_text": copy.body.decode("utf-8", "replace")})
            return OK
        if not agreed(options, "send it?"):
            return FAILED
        result = await edit(
            broker,
            shown.letter,
            new_body,
            by=operator(),
            reason=options.reason,
            discard_original=options.discard_original,
        )
        if options.json:
            answer = {"act": result.act_id, "original": result.original, "copy": result.copy}
            emit({"dry_run": False, **answer, "discarded": result.discarded})
            return OK
        channel = shown.letter.channel
        print(f"sent {result.copy} to group {channel.group} on topic {channel.topic}")
        print(f"the original was {'discarded' if result.discarded else 'kept'}")
        return OK

    return run_with_broker(options, act)


async def _planned(broker: Broker, options: argparse.Namespace, *, whole_keys: bool) -> Plan:
    now = SystemClock().now_us()
    selection = selection_of(options, now=now, must_say=True)
    return await plan_letters(broker, selection, now=now, whole_keys=whole_keys)


def _goes_on(plan: Plan, options: argparse.Namespace, verb: str) -> bool:
    """Show the plan; say whether the act is to happen. Without letters, or in a dry run, it is not."""
    if options.dry_run or not plan.count:
        if options.json:
            emit({**plan_document(plan), "dry_run": options.dry_run, "changed": False})
        elif plan.count:
            print_plan(plan, f"would {verb}")
        else:
            print("nothing changed: no dead letter matches")
        return False
    print_plan(plan, verb)
    return agreed(options, f"{verb} {plan.count}?")


def _told(done: Done, options: argparse.Namespace, verb: str) -> int:
    if options.json:
        emit(done_document(done))
    else:
        print_done(done, verb)
    return FAILED if done.left else OK


async def _resumed(broker: Broker, options: argparse.Namespace, pace: Pace) -> int:
    acts = await interrupted_redrives(broker)
    if not acts or options.dry_run:
        if options.json:
            emit({"dry_run": options.dry_run, "interrupted": [act.id for act in acts], "resumed": []})
        elif not acts:
            print("nothing changed: no redrive was interrupted")
        for act in acts:
            print(f"would resume {act.id}, begun by {clean(act.who)} at {stamp(act.at)}", file=sys.stderr)
        return OK
    for act in acts:
        told = f"resume {act.id}: {act.count} letters, begun by {clean(act.who)} at {stamp(act.at)}"
        print(told, file=sys.stderr)
    if not agreed(options, f"resume {len(acts)}?"):
        return FAILED
    results = [await resume(broker, act, by=operator(), pace=pace) for act in acts]
    if options.json:
        emit({"dry_run": False, "resumed": [done_document(done) for done in results]})
    else:
        for done in results:
            print_done(done, "redriven")
    return FAILED if any(done.left for done in results) else OK


async def _one(broker: Broker, options: argparse.Namespace) -> Shown:
    found = await show_letters(broker, options.id, topic=options.topic, group=options.group)
    if not found:
        raise ConfigurationError(f"no dead letter has the id {options.id!r}", hint="`tidewire dlq list` lists them")
    channels = {one.letter.channel for one in found}
    if len(channels) > 1:
        names = ", ".join(sorted(f"{channel.group} on {channel.topic}" for channel in channels))
        raise ConfigurationError(f"{options.id} is a dead letter of several groups: {names}", hint="say which: --group")
    return found[-1]


def _body_from(options: argparse.Namespace) -> BodyFrom:
    if options.body:
        try:
            body = sys.stdin.buffer.read() if options.body == "-" else Path(options.body).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"--body {options.body}: {error.strerror}") from error
        return lambda _: body
    values: dict[str, object] = {}
    for given in options.set:
        path, separator, text = given.partition("=")
        if not separator:
            raise ConfigurationError(f"--set {given!r} has no value", hint="--set total=12.50")
        values[path] = value_of(text)
    return set_fields(values)


def _print_edit(shown: Shown, body: bytes, options: argparse.Namespace) -> None:
    channel = shown.letter.channel
    print(f"send to group {channel.group} on topic {channel.topic}:", file=sys.stderr)
    print(f"  {clean(body.decode('utf-8', 'backslashreplace'), width=4_096)}", file=sys.stderr)
    if shown.letter.held or (shown.behind_count and not options.discard_original):
        print("  its key is held: the copy waits behind what is held, until that is redriven", file=sys.stderr)
    elif shown.behind_count:
        print(f"  {shown.behind_count} events of its key wait: the copy runs after them", file=sys.stderr)


class _Meter:
    """How far an act is, on stderr, where that is a terminal."""

    def __init__(self, word: str) -> None:
        self._word = word
        self._live = sys.stderr.isatty()

    def at(self, moved: int, planned: int) -> None:
        """Say how many of how many have gone."""
        if self._live:
            print(f"\r{self._word} {moved:,} of {planned:,}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clear the line."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
