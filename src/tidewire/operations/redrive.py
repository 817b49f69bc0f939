"""Giving dead letters back to their group, or giving them up: planned, paced, resumable, and audited.

One act is one walk through dead channels. A batch is published and confirmed, then removed: what dies in between is
published again by whoever resumes, with the same ids, and inbox marks make that one effect.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import TypeAlias

import msgspec

from tidewire.errors import ConfigurationError, TransportRefused
from tidewire.model import Act, DeadChannel, InboxChannel, Message, Receipt
from tidewire.operations.audit import Operator, ended, interrupted, ledger_of
from tidewire.operations.letters import Place, channels_of, dead_in, inspector_of, scan
from tidewire.operations.selection import Letter, Selection
from tidewire.protocols import Inspector, Transport
from tidewire.rules.letters import DEDUP_WINDOW, DISCARDED, discarded, redriven

__all__ = [
    "Done",
    "Pace",
    "Part",
    "Plan",
    "Refused",
    "discard",
    "interrupted_redrives",
    "plan_letters",
    "redrive",
    "resume",
]

BATCH = 100
BATCH_BYTES_MAX = 4 << 20
KEYS_MAX = 100_000
DETAIL_BYTES_MAX = 512 << 10
REFUSED_MAX = 100
SAMPLE = 10

Convert: TypeAlias = Callable[[Letter], "Message | None"]
Progress: TypeAlias = Callable[[int, int], None]
_Sent: TypeAlias = tuple[str, str, str, bytes]


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a plan means in one dead channel: letters up to *until*.

    *keys* are the keys of which every letter goes, whatever the selection says. *late* are keys with letters that
    lie before the head they wait for: those letters go last.
    """

    topic: str
    group: str
    until: Place
    count: int
    keys: tuple[str, ...] = ()
    late: tuple[str, ...] = ()

    @property
    def channel(self) -> DeadChannel:
        """The dead channel."""
        return DeadChannel(self.topic, self.group)


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an act would do, as far as it could be seen. Its JSON is what the audit keeps and a resume goes by.

    *count* letters in all; *followers* of them only because their key goes as a whole; *unfit*: older than the dedup
    window. *sample*: the ids of the first selected ones.
    """

    selection: Selection
    parts: tuple[Part, ...] = ()
    count: int = 0
    followers: int = 0
    unfit: int = 0
    sample: tuple[str, ...] = ()


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A letter that the broker did not take; it stays in the dead channel."""

    event_id: str
    status: str
    reason: str
    detail: str


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What an act did, and what was seen afterwards.

    *moved*: letters that left the dead channel by this act. *left*: planned ones that are still there. *dead*: all
    letters in those channels now, those that came meanwhile included; None where the broker cannot tell.
    """

    act_id: str
    planned: int
    moved: int
    left: int
    dead: int | None
    refused: Sequence[Refused] = ()

    @property
    def changed(self) -> bool:
        """Whether anything is other than before."""
        return self.moved > 0


class Pace:
    """At most *rate* letters a second on the event loop's clock, without catching up; None for no limit."""

    def __init__(self, rate: float | None = None) -> None:
        if rate is not None and not 0 < rate < 1e9:
            raise ConfigurationError(f"a rate of {rate} per second cannot be", hint="give a number above zero")
        self._rate = rate
        self._next = 0.0

    @property
    def batch(self) -> int:
        """How many go at once: about a tenth of a second's worth, at most 100."""
        return BATCH if self._rate is None else max(1, min(BATCH, int(self._rate / 10)))

    async def turn(self, count: int) -> None:
        """Wait until *count* more may go."""
        if self._rate is None:
            return
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._next - loop.time()))
        self._next = max(loop.time(), self._next) + count / self._rate


# --- planning -------------------------------------------------------------------------------------------------


async def plan_letters(transport: Transport, selection: Selection, *, now: int, whole_keys: bool = True) -> Plan:
    """Return what an act on *selection* would do; nothing is changed.

    With *whole_keys*, a selected letter of a held key brings with it all letters of that key, from the head on.
    *now* (µs since 1970) judges which letters are older than the dedup window.

    Raises:
        ConfigurationError: the broker cannot be looked into; there is no such topic or group; the selection reaches
            into more held keys than a plan can name.
    """
    inspector = inspector_of(transport)
    parts: list[Part] = []
    followers = unfit = 0
    sample: list[str] = []
    for channel in await channels_of(inspector, selection):
        survey = _Survey(channel, selection, now)
        async for letter in scan(inspector, channel):
            survey.add(letter)
        if survey.last is None or not survey.count:
            continue
        until = Place(survey.last.position, survey.last.stored_at)
        keys = survey.split_keys() if whole_keys else frozenset[str]()
        others, others_unfit = await _followers(inspector, channel, survey, until=until, keys=keys)
        followers += others
        unfit += survey.unfit + others_unfit
        sample += survey.sample
        late = tuple(sorted(survey.late & survey.taken(keys)))
        parts.append(
            Part(
                topic=channel.topic,
                group=channel.group,
                until=until,
                count=survey.count + others,
                keys=tuple(sorted(keys)),
                late=late,
            )
        )
    _check_size(parts)
    count = sum(part.count for part in parts)
    return Plan(
        selection=selection,
        parts=tuple(parts),
        count=count,
        followers=followers,
        unfit=unfit,
        sample=tuple(sample[:SAMPLE]),
    )


class _Survey:
    """What one look at a dead channel tells: how many are selected, which keys are held, whose head lies late."""

    def __init__(self, channel: DeadChannel, selection: Selection, now: int) -> None:
        self.count = 0
        self.unfit = 0
        self.sample: list[str] = []
        self.last: Letter | None = None
        self.late: set[str] = set()
        self._channel = channel
        self.selection = selection
        self.now = now
        self._begins_held: dict[str, bool] = {}
        self._held: set[str] = set()
        self._selected: set[str] = set()
        self._others: set[str] = set()

    def add(self, letter: Letter) -> None:
        matches = self.selection.matches(letter)
        self.last = letter
        if matches:
            self.count += 1
            self.unfit += letter.beyond_window(self.now)
            if len(self.sample) < SAMPLE:
                self.sample.append(letter.message.id)
        key = letter.message.key
        if key is None or len(self._begins_held) >= KEYS_MAX:
            if key is not None and not self.selection.whole_channels:
                raise _too_many_keys(f"{self._channel.topic} / {self._channel.group} has over {KEYS_MAX} keys")
            return
        began_held = self._begins_held.setdefault(key, letter.held)
        if letter.held:
            self._held.add(key)
        elif began_held:
            self.late.add(key)
        (self._selected if matches else self._others).add(key)

    def split_keys(self) -> frozenset[str]:
        """Return the held keys of which some letters are selected and others are not."""
        return frozenset(self._held & self._selected & self._others)

    def taken(self, chosen: frozenset[str]) -> set[str]:
        """Return the keys of which the plan takes all letters."""
        return (self._selected - self._others) | chosen


async def _followers(
    inspector: Inspector, channel: DeadChannel, survey: _Survey, *, until: Place, keys: frozenset[str]
) -> tuple[int, int]:
    """Return how many letters go only because their key does, and how many of those are beyond the window."""
    count = unfit = 0
    if keys:
        async for letter in scan(inspector, channel, until=until):
            if letter.message.key in keys and not survey.selection.matches(letter):
                count += 1
                unfit += letter.beyond_window(survey.now)
    return count, unfit


def _wanted(selection: Selection, letter: Letter, keys: frozenset[str]) -> bool:
    key = letter.message.key
    return (key is not None and key in keys) or selection.matches(letter)


def _check_size(parts: Iterable[Part]) -> None:
    size = sum(len(key) + 3 for part in parts for key in (*part.keys, *part.late))
    if size > DETAIL_BYTES_MAX:
        raise _too_many_keys(f"the held keys that the selection reaches into fill {size} bytes")


def _too_many_keys(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what}, more than one plan can name", hint="select by --topic and --group alone, or take fewer at a time"
    )


# --- acting ---------------------------------------------------------------------------------------------------


async def redrive(
    transport: Transport,
    plan: Plan,
    *,
    by: Operator,
    pace: Pace | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Done:
    """Give the letters of *plan* back to their group, through its inbox channel, and say what was seen afterwards.

    The group alone gets them, with their ids, for a new cycle of attempts. *progress* hears how many have gone and
    how many were planned. Cancelled or killed, the act stays ``begun`` in the audit, and `resume` goes on with it.
    A plan without letters changes nothing and is not audited.

    Raises:
        ConfigurationError: letters are older than the dedup window, and *force* is not given.
        TransportUnavailable: the broker is away; the act stays ``begun``.
    """
    if plan.unfit and not force:
        raise ConfigurationError(
            f"{plan.unfit} of {plan.count} dead letters are older than the dedup window of {DEDUP_WINDOW.days} days: "
            "what has taken effect may do so again",
            hint="leave them out with --newer-than, or accept that with --force",
        )
    begun = _begun("redrive", plan, by=by)
    if not plan.count:
        return _nothing(begun.id)
    await ledger_of(transport).note(begun)
    return await _Act(transport, begun, plan, by=by).run(_redriven, pace or Pace(), progress)


async def resume(
    transport: Transport, begun: Act, *, by: Operator, pace: Pace | None = None, progress: Progress | None = None
) -> Done:
    """Go on with a redrive that was interrupted: with what of its plan still lies in the dead channels.

    Safe to repeat, and beside one that still runs: an event that is given back twice takes effect once.

    Raises:
        ConfigurationError: its plan cannot be read; a newer tidewire wrote it.
    """
    try:
        plan = msgspec.json.decode(begun.detail, type=Plan)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f"the plan of redrive {begun.id} cannot be read: {error}", hint="resume it with the tidewire that began it"
        ) from None
    act = _Act(transport, begun, plan, by=by)
    act.resumed = True
    return await act.run(_redriven, pace or Pace(), progress)


async def interrupted_redrives(transport: Transport) -> list[Act]:
    """Return the redrives that have begun and not ended, oldest first; one that runs now is among them."""
    return await interrupted(transport, "redrive")


async def discard(
    transport: Transport, plan: Plan, *, by: Operator, reason: str, progress: Progress | None = None
) -> Done:
    """Give the letters of *plan* up for *reason*: their handlers never run.

    The group hears of a keyed one through its inbox channel, so that nothing of its key waits for it any more.
    Interrupted, it can be repeated.

    Raises:
        ConfigurationError: *reason* is empty.
        TransportUnavailable: the broker is away; the act stays ``begun``.
    """
    if not reason.strip():
        raise ConfigurationError("a discard needs a reason", hint="say it with --reason")
    begun = _begun("discard", plan, by=by, reason=reason)
    if not plan.count:
        return _nothing(begun.id)
    await ledger_of(transport).note(begun)

    def given_up(letter: Letter) -> Message | None:
        return None if letter.message.key is None else discarded(letter.message, reason)

    return await _Act(transport, begun, plan, by=by).run(given_up, Pace(), progress)


async def _sent_before(inspector: Inspector, channel: DeadChannel) -> frozenset[_Sent]:
    """Return what lies in the group's inbox channel, of very much the newest; nothing where it cannot be looked at."""
    found: deque[_Sent] = deque(maxlen=KEYS_MAX)
    after: int | str | None = None
    with suppress(TransportRefused):
        while page := await inspector.browse(InboxChannel(channel.topic, channel.group), after=after, limit=BATCH):
            found.extend(name for browsed in page if (name := _name(browsed.message)) is not None)
            after = page[-1].position
    return frozenset(found)


def _name(message: Message) -> _Sent | None:
    """Return what tells a redriven message from every other one; None for one without an id, and for a discard."""
    if not message.id or DISCARDED in message.headers:
        return None
    digest = blake2b(message.body, digest_size=16).digest()
    return message.source, message.id, message.headers.get("tw-redriven", ""), digest


def _redriven(letter: Letter) -> Message | None:
    return redriven(letter.message)


def _begun(verb: str, plan: Plan, *, by: Operator, reason: str = "") -> Act:
    only = plan.parts[0] if len(plan.parts) == 1 else None
    return Act(
        id=by.ids.event_id(),
        at=by.clock.now_us(),
        who=by.who,
        verb=verb,
        topic=only.topic if only else plan.selection.topic,
        group=only.group if only else plan.selection.group,
        state="begun",
        reason=reason,
        count=plan.count,
        detail=msgspec.json.encode(plan).decode(),
    )


def _nothing(act_id: str) -> Done:
    return Done(act_id=act_id, planned=0, moved=0, left=0, dead=None)


class _Act:
    """One walk through the dead channels of a plan."""

    def __init__(self, transport: Transport, begun: Act, plan: Plan, *, by: Operator) -> None:
        self._transport = transport
        self._inspector = inspector_of(transport)
        self._begun = begun
        self._plan = plan
        self._by = by
        self._moved = 0
        self._refused: list[Refused] = []
        self._blocked: set[str] = set()
        self._sent: frozenset[_Sent] = frozenset()
        self.resumed = False

    async def run(self, convert: Convert, pace: Pace, progress: Progress | None) -> Done:
        """Walk, look again at what is there, and note the end."""
        for part in self._plan.parts:
            self._blocked.clear()
            if self.resumed:
                self._sent = await _sent_before(self._inspector, part.channel)
            async for batch in self._batches(part, pace.batch):
                await pace.turn(len(batch))
                await self._hand_over(part.channel, batch, convert)
                if progress is not None:
                    progress(self._moved, self._plan.count)
        done = await self._seen()
        detail = {"planned": done.planned, "left": done.left, "dead": done.dead, "refused": self._refused[:SAMPLE]}
        await ended(self._transport, self._begun, by=self._by, count=done.moved, detail=detail, failed=done.left > 0)
        return done

    async def _hand_over(self, channel: DeadChannel, batch: Sequence[Letter], convert: Convert) -> None:
        """Publish what *convert* makes of each letter, then remove those that are confirmed, or need no message.

        What an interrupted act had published, and not removed, is in the inbox channel and needs no second copy.
        """
        made = [(letter, convert(letter)) for letter in batch]
        sent = [
            (letter, message) for letter, message in made if message is not None and _name(message) not in self._sent
        ]
        receipts = await self._transport.publish([message for _, message in sent])
        kept: set[int | str] = set()
        for (letter, _), receipt in zip(sent, receipts, strict=True):
            if not receipt.ok:
                kept.add(letter.position)
                self._note_refused(letter, receipt)
        gone = [letter.position for letter in batch if letter.position not in kept]
        self._moved += await self._inspector.remove(channel, gone) if gone else 0

    def _note_refused(self, letter: Letter, receipt: Receipt) -> None:
        if letter.message.key is not None:
            self._blocked.add(letter.message.key)  # what follows of its key must not overtake it
        self._refused.append(
            Refused(event_id=letter.message.id, status=receipt.status, reason=receipt.reason, detail=receipt.detail)
        )

    async def _batches(self, part: Part, size: int) -> AsyncGenerator[list[Letter]]:
        """Give the planned letters in batches; none after too many refusals, and never more than planned."""
        batch: list[Letter] = []
        weight = taken = 0
        async for letter in self._in_order(part):
            if letter.message.key is not None and letter.message.key in self._blocked:
                continue
            if taken >= part.count or len(self._refused) >= REFUSED_MAX:
                break
            taken += 1
            batch.append(letter)
            weight += len(letter.message.body)
            if len(batch) >= size or weight >= BATCH_BYTES_MAX:
                yield batch
                batch, weight = [], 0
        if batch:
            yield batch

    async def _in_order(self, part: Part) -> AsyncGenerator[Letter]:
        """Give the planned letters in the order of the channel; those before the head of their key after all others."""
        wanted, late, opened = frozenset(part.keys), frozenset(part.late), set[str]()
        async for letter in scan(self._inspector, part.channel, until=part.until):
            key = letter.message.key
            if not _wanted(self._plan.selection, letter, wanted):
                continue
            if key in late and key not in opened:
                if letter.held:
                    continue
                opened.add(key or "")
            yield letter
        if late:
            async for letter in scan(self._inspector, part.channel, until=part.until):
                if letter.message.key in late and _wanted(self._plan.selection, letter, wanted):
                    yield letter

    async def _seen(self) -> Done:
        """Look again: what of the plan is still there, and how many letters there are now."""
        left = 0
        for part in self._plan.parts:
            wanted = frozenset(part.keys)
            async for letter in scan(self._inspector, part.channel, until=part.until):
                left += _wanted(self._plan.selection, letter, wanted)
        return Done(
            act_id=self._begun.id,
            planned=self._plan.count,
            moved=self._moved,
            left=left,
            dead=await dead_in(self._inspector, [part.channel for part in self._plan.parts]),
            refused=self._refused[:SAMPLE],
        )
