"""Looking at dead letters: where they lie, which there are, what one of them says, and what they have in common."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from difflib import get_close_matches
from typing import TypeGuard

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.model import DeadChannel
from tidewire.operations.selection import Letter, Selection
from tidewire.protocols import Finder, Inspector, Transport

__all__ = [
    "Cause",
    "Place",
    "Shown",
    "channels_of",
    "dead_in",
    "group_by_cause",
    "inspector_of",
    "list_letters",
    "scan",
    "show_letters",
]

PAGE = 100
CAUSES_MAX = 1_000
WAITING_SHOWN_MAX = 20
_MASKED = re.compile(
    r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
    r"|\b(?=[a-f]*\d)[0-9a-f]{12,}\b|\d+"
)
_MESSAGE_MAX = 200


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last letter that was there when somebody looked: what has come behind it is not meant."""

    position: int | str
    stored_at: int | None = None


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The first letters of a selection, and counts of all of it."""

    letters: Sequence[Letter]
    count: int
    reasons: dict[str, int]
    channels: dict[DeadChannel, int]


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """One letter with what waits behind it in its dead channel.

    *behind* are the first ids of them, *behind_count* counts all. *head* is the id of the letter of its key that
    it waits behind, where it is held and that one is in the dead channel too.
    """

    letter: Letter
    behind: Sequence[str]
    behind_count: int
    head: str | None


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Letters with the same reason, error type and message but for its numbers; *example* is an event's id."""

    topic: str
    group: str
    reason: str
    error: str
    message: str
    count: int
    example: str
    oldest: int | None
    newest: int | None


def inspector_of(transport: Transport) -> Inspector:
    """Return what looks into the broker behind *transport*.

    Raises:
        ConfigurationError: this broker cannot be looked into.
    """
    if not _inspects(transport):
        raise ConfigurationError(
            "this broker cannot be looked into, so its dead letters cannot be listed or redriven",
            hint="use the broker's own tools, or a transport with an Inspector",
        )
    return transport


async def channels_of(inspector: Inspector, selection: Selection) -> list[DeadChannel]:
    """Return the dead channels that *selection* can mean and that may hold letters, by topic and group.

    Raises:
        ConfigurationError: it names a topic or a group that does not exist; says what is near.
    """
    infos = await inspector.groups()
    _check_name("topic", selection.topic, {info.topic for info in infos})
    there = [info for info in infos if selection.topic in ("", info.topic)]
    _check_name("group", selection.group, {info.group for info in there})
    found = [DeadChannel(info.topic, info.group) for info in there if info.stats.dead != 0]
    return [channel for channel in found if selection.meets(channel)]


async def scan(inspector: Inspector, channel: DeadChannel, *, until: Place | None = None) -> AsyncGenerator[Letter]:
    """Give the letters of *channel*, oldest first, a page at a time; none behind *until*.

    Letters may be removed meanwhile. Where the letter at *until* is gone, the broker's own stamps tell what came
    behind it.
    """
    after: int | str | None = None
    while True:
        page = await inspector.browse(channel, after=after, limit=PAGE)
        for browsed in page:
            letter = Letter.of(browsed)
            if until is not None and _is_behind(letter, until):
                return
            yield letter
            if until is not None and letter.position == until.position:
                return
        if not page:
            return
        after = page[-1].position


async def list_letters(transport: Transport, selection: Selection, *, limit: int = 50) -> Listing:
    """Return the first *limit* letters of *selection*, channel by channel, and counts of all of it.

    Raises:
        ConfigurationError: the broker cannot be looked into, or there is no such topic or group.
    """
    inspector = inspector_of(transport)
    letters: list[Letter] = []
    reasons: dict[str, int] = {}
    channels: dict[DeadChannel, int] = {}
    for channel in await channels_of(inspector, selection):
        async for letter in scan(inspector, channel):
            if not selection.matches(letter):
                continue
            if len(letters) < limit:
                letters.append(letter)
            reasons[letter.reason] = reasons.get(letter.reason, 0) + 1
            channels[channel] = channels.get(channel, 0) + 1
    return Listing(letters=letters, count=sum(channels.values()), reasons=reasons, channels=channels)


async def show_letters(transport: Transport, event_id: str, *, topic: str = "", group: str = "") -> list[Shown]:
    """Return every dead letter with this event id, each with what waits behind it; of one event there may be one
    per group. Where the broker has an index of ids, only the channels it names are read.

    Raises:
        ConfigurationError: as `list_letters`.
    """
    inspector = inspector_of(transport)
    selection = Selection(topic=topic, group=group, ids=(event_id,))
    channels = await channels_of(inspector, selection)
    if _finds(transport):
        places = {found.message.to for found in await transport.find(event_id)}
        channels = [channel for channel in channels if channel in places]
    shown: list[Shown] = []
    for channel in channels:
        letters = [letter async for letter in scan(inspector, channel) if selection.matches(letter)]
        shown += [await _with_waiting(inspector, letter) for letter in letters]
    return shown


async def group_by_cause(transport: Transport, selection: Selection) -> list[Cause]:
    """Return the letters of *selection* grouped by cause, most frequent first.

    A message's numbers and ids are masked, so that a thousand orders that failed alike are one line. At most
    1,000 causes are told apart; the rest is counted as "other".

    Raises:
        ConfigurationError: as `list_letters`.
    """
    inspector = inspector_of(transport)
    causes: dict[tuple[str, ...], Cause] = {}
    for channel in await channels_of(inspector, selection):
        async for letter in scan(inspector, channel):
            if selection.matches(letter):
                _count(causes, letter)
    return sorted(causes.values(), key=lambda cause: (-cause.count, cause.topic, cause.group, cause.message))


async def dead_in(inspector: Inspector, channels: Sequence[DeadChannel]) -> int | None:
    """Return how many letters lie in *channels* now, or None where the broker cannot tell."""
    counts = [(await inspector.stats(channel.topic, channel.group)).dead for channel in channels]
    return None if None in counts else sum(count for count in counts if count is not None)


async def _with_waiting(inspector: Inspector, letter: Letter) -> Shown:
    """Return *letter* with the letters of its key that wait in its channel: behind it, or with it behind their head."""
    behind: list[str] = []
    count, seen, head = 0, False, None
    if letter.message.key is not None:
        async for other in scan(inspector, letter.channel):
            if other.position == letter.position:
                seen = True
            elif other.message.key != letter.message.key:
                continue
            elif other.held and (seen or not letter.held):
                count += 1
                if len(behind) < WAITING_SHOWN_MAX:
                    behind.append(other.message.id)
            elif letter.held and not other.held and head is None:
                head = other.message.id
    return Shown(letter=letter, behind=behind, behind_count=count, head=head)


def cause_of(letter: Letter) -> tuple[str, str]:
    """Return the error type and the message, without its numbers, that *letter* shares with its like."""
    kind, separator, text = letter.error.partition(": ")
    if not separator:
        kind, text = "", letter.error or letter.detail
    if letter.held:
        text = "waits behind a dead letter of its key"
    return kind, _MASKED.sub("#", text)[:_MESSAGE_MAX]


def _count(causes: dict[tuple[str, ...], Cause], letter: Letter) -> None:
    channel = letter.channel
    kind, text = cause_of(letter)
    name = (channel.topic, channel.group, letter.reason, kind, text)
    if name not in causes and len(causes) >= CAUSES_MAX:
        name = ("", "", "", "", "other")
    known = causes.get(name)
    at = letter.stored_at
    if known is None:
        topic, group, reason, kind, text = name
        causes[name] = Cause(
            topic=topic, group=group, reason=reason, error=kind, message=text,
            count=1, example=letter.message.id, oldest=at, newest=at,
        )  # fmt: skip
        return
    stamps = [stamp for stamp in (known.oldest, known.newest, at) if stamp is not None]
    causes[name] = msgspec.structs.replace(
        known, count=known.count + 1, oldest=min(stamps, default=None), newest=max(stamps, default=None)
    )


def _is_behind(letter: Letter, until: Place) -> bool:
    """Whether *letter* came behind *until*, which may be gone: by numbers where positions are, else by stamps."""
    if isinstance(letter.position, int) and isinstance(until.position, int):
        return letter.position > until.position
    if letter.stored_at is None or until.stored_at is None:
        return False
    return letter.position != until.position and letter.stored_at > until.stored_at


def _check_name(what: str, name: str, known: set[str]) -> None:
    if name and name not in known:
        near = get_close_matches(name, sorted(known), n=1)
        listing = f"there are: {', '.join(sorted(known)[:20])}" if known else f"this broker has no {what}s"
        raise ConfigurationError(
            f"there is no {what} {name!r}" + (" with a group on it" if what == "topic" else ""),
            hint=f"did you mean {near[0]!r}?" if near else listing,
        )


def _inspects(transport: object) -> TypeGuard[Inspector]:
    return all(callable(getattr(transport, name, None)) for name in ("groups", "stats", "browse", "remove"))


def _finds(transport: object) -> TypeGuard[Finder]:
    return all(callable(getattr(transport, name, None)) for name in ("find", "related"))
