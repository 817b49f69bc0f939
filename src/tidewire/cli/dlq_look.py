"""``tidewire dlq list | show | groups | audit``: what lies in the dead channels, why, and who did what about it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from tidewire.cli.brokers import Broker, broker_parser, run_with_broker
from tidewire.cli.dlq_options import clean, selecting_parser, selection_of
from tidewire.cli.exits import FAILED, OK, CommandParser, tell
from tidewire.cli.shown import age, emit, stamp, table
from tidewire.clock import SystemClock
from tidewire.model import Act
from tidewire.operations.audit import acts_of
from tidewire.operations.letters import Cause, Shown, group_by_cause, list_letters, show_letters
from tidewire.operations.selection import Letter, is_json

__all__ = ["audit", "audit_parser", "groups", "groups_parser", "list_parser", "listed", "show", "show_parser"]

_BODY_SHOWN_MAX = 16_384


def list_parser() -> CommandParser:
    """Return the parser of ``dlq list``."""
    examples = "  tidewire dlq list\n  tidewire dlq list --group billing --reason-is exhausted --newer-than 2h"
    parser = selecting_parser("list", "List dead letters, oldest first, and count all that match.", examples=examples)
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="show at most N (default: 50); all count")
    return parser


def listed(arguments: Sequence[str]) -> int:
    """List dead letters, and return the exit code."""
    options = list_parser().parse_all(arguments)
    now = SystemClock().now_us()

    async def act(broker: Broker) -> int:
        listing = await list_letters(broker, selection_of(options, now=now), limit=max(0, options.limit))
        if options.json:
            channels = [
                {"topic": channel.topic, "group": channel.group, "count": count}
                for channel, count in listing.channels.items()
            ]
            letters = [as_document(letter) for letter in listing.letters]
            emit({"count": listing.count, "reasons": listing.reasons, "channels": channels, "letters": letters})
            return OK
        if not listing.count:
            print("no dead letter matches")
            return OK
        table(("id", "group", "type", "key", "reason", "age", "why"), [_row(one, now) for one in listing.letters])
        shown = len(listing.letters)
        reasons = ", ".join(f"{count} {clean(reason)}" for reason, count in sorted(listing.reasons.items()))
        print(f"\n{listing.count} dead letters ({reasons})" + (f", {shown} shown" if shown < listing.count else ""))
        return OK

    return run_with_broker(options, act)


def show_parser() -> CommandParser:
    """Return the parser of ``dlq show``."""
    parser = broker_parser(
        "tidewire dlq show",
        "Show a dead letter: its headers, its body, its errors, and what waits behind it.",
        epilog="example:\n  tidewire dlq show 0199e3c2-7e21-7d4e-9c58-5f0a3b1f2d11\n\nexit code 1: there is none",
    )
    parser.add_argument("id", metavar="ID", help="the id of the event")
    parser.add_argument("--topic", default="", metavar="TOPIC", help="only on this topic")
    parser.add_argument("--group", default="", metavar="GROUP", help="only the letter of this group")
    return parser


def show(arguments: Sequence[str]) -> int:
    """Show a dead letter, and return the exit code."""
    options = show_parser().parse_all(arguments)

    async def act(broker: Broker) -> int:
        found = await show_letters(broker, options.id, topic=options.topic, group=options.group)
        if options.json:
            emit({"id": options.id, "letters": [_shown_document(one) for one in found]})
        else:
            for one in found:
                _print_letter(one)
        if not found:
            tell(f"no dead letter has the id {options.id!r}", hint="`tidewire find` looks for it everywhere")
            return FAILED
        return OK

    return run_with_broker(options, act)


def groups_parser() -> CommandParser:
    """Return the parser of ``dlq groups``."""
    return selecting_parser(
        "groups",
        "Group dead letters by cause: reason, error type, and message without its numbers.",
        examples="  tidewire dlq groups --newer-than 1d",
    )


def groups(arguments: Sequence[str]) -> int:
    """Group dead letters by cause, and return the exit code."""
    options = groups_parser().parse_all(arguments)
    now = SystemClock().now_us()

    async def act(broker: Broker) -> int:
        causes = await group_by_cause(broker, selection_of(options, now=now))
        if options.json:
            emit({"causes": [msgspec.to_builtins(cause) for cause in causes]})
        elif not causes:
            print("no dead letter matches")
        else:
            headings = ("count", "group", "reason", "error", "message", "newest", "example")
            table(headings, [_cause_row(cause, now) for cause in causes], right=(0,))
        return OK

    return run_with_broker(options, act)


def audit_parser() -> CommandParser:
    """Return the parser of ``dlq audit``."""
    parser = broker_parser(
        "tidewire dlq audit",
        "List what operators did, newest last. An act that has begun and not ended is running, or was interrupted.",
        epilog="example:\n  tidewire dlq audit --limit 10 --json",
    )
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="the newest N acts (default: 50)")
    return parser


def audit(arguments: Sequence[str]) -> int:
    """List the newest acts, and return the exit code."""
    options = audit_parser().parse_all(arguments)

    async def act(broker: Broker) -> int:
        newest: deque[tuple[int, Act]] = deque(maxlen=max(1, options.limit))
        async for numbered in acts_of(broker):
            newest.append(numbered)
        if options.json:
            emit({"acts": [_act_document(number, one) for number, one in newest]})
        elif not newest:
            print("nobody has done anything yet")
        else:
            ended = {one.id for _, one in newest if one.state != "begun"}
            table(
                ("at", "who", "verb", "where", "letters", "state", "reason"),
                [_act_row(one, is_open=one.id not in ended) for _, one in newest],
                right=(4,),
            )
        return OK

    return run_with_broker(options, act)


def as_document(letter: Letter) -> dict[str, Any]:
    """Return *letter* as ``--json`` prints it in a list."""
    headers, channel = letter.headers, letter.channel
    return {
        "id": letter.message.id,
        "topic": channel.topic,
        "group": channel.group,
        "type": letter.type,
        "source": letter.message.source,
        "key": letter.message.key,
        "reason": letter.reason,
        "detail": letter.detail,
        "attempts": _number(headers.get("dl-attempts")),
        "first_error": headers.get("dl-first-error"),
        "last_error": headers.get("dl-last-error"),
        "stored_at": letter.stored_at,
        "position": letter.position,
    }


def _shown_document(shown: Shown) -> dict[str, Any]:
    body, text = _decoded(shown.letter), None
    if body is None:
        text = shown.letter.message.body.decode("utf-8", "backslashreplace")
    return {
        **as_document(shown.letter),
        "headers": dict(shown.letter.headers),
        "body": body,
        "body_text": text,
        "waits_behind": shown.head,
        "waiting": {"count": shown.behind_count, "first": list(shown.behind)},
    }


def _decoded(letter: Letter) -> Any:
    """Return the body where it is JSON, else None."""
    if not is_json(letter.message):
        return None
    try:
        return msgspec.json.decode(letter.message.body)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _row(letter: Letter, now: int) -> tuple[str, ...]:
    message = letter.message
    why = letter.error or letter.detail
    texts = (message.id, letter.channel.group, letter.type, message.key or "", letter.reason)
    return (*(clean(text, width=48) for text in texts), age(letter.stored_at, now), clean(why, width=80))


def _cause_row(cause: Cause, now: int) -> tuple[str, ...]:
    texts = (cause.group, cause.reason, cause.error)
    shown = [clean(text, width=40) for text in texts]
    return (str(cause.count), *shown, clean(cause.message, width=80), age(cause.newest, now), clean(cause.example))


def _act_row(act: Act, *, is_open: bool) -> tuple[str, ...]:
    where = " / ".join(name for name in (act.topic, act.group) if name) or "all"
    state = "begun, not ended" if is_open and act.state == "begun" else act.state
    return stamp(act.at), clean(act.who), act.verb, where, str(act.count), state, clean(act.reason, width=60)


def _act_document(number: int, act: Act) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(act)
    return {"number": number, **document, "detail": msgspec.json.decode(act.detail)}


def _print_letter(shown: Shown) -> None:
    letter = shown.letter
    headers, channel = letter.headers, letter.channel
    rows: list[tuple[str, object]] = [
        ("topic", channel.topic),
        ("group", channel.group),
        ("type", clean(letter.type)),
        ("source", clean(letter.message.source)),
        ("key", clean(letter.message.key or "-")),
        ("reason", clean(letter.reason)),
        ("detail", clean(letter.detail)),
        ("attempts", clean(headers.get("dl-attempts", "-"))),
        ("first error", clean(headers.get("dl-first-error", "-"))),
        ("last error", clean(headers.get("dl-last-error", "-"))),
        ("given up", stamp(letter.stored_at)),
    ]
    if shown.head is not None:
        rows.append(("waits behind", clean(shown.head)))
    if shown.behind_count:
        more = " …" if shown.behind_count > len(shown.behind) else ""
        waiting = ", ".join(clean(name) for name in shown.behind)
        rows.append(("waiting", f"{shown.behind_count} events of its key: {waiting}{more}"))
    table(("id", clean(letter.message.id)), rows)
    print("\nheaders")
    for name, value in sorted(headers.items()):
        print(f"  {clean(name)}: {clean(value)}")
    print("\nbody" + (f" ({len(letter.message.body)} bytes)"))
    for line in _body_lines(letter):
        print(f"  {line}")
    print()


def _body_lines(letter: Letter) -> list[str]:
    body = letter.message.body
    if _decoded(letter) is not None:
        text = msgspec.json.format(body, indent=2).decode("utf-8", "backslashreplace")
    else:
        text = body.decode("utf-8", "backslashreplace")
    lines = [clean(line) for line in text[:_BODY_SHOWN_MAX].split("\n")]
    return lines if len(text) <= _BODY_SHOWN_MAX else [*lines, "… (`tidewire dlq export` has all of it)"]


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
