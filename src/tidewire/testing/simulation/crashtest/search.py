"""Trying every way to die, or many; and of each handler that is not idempotent, the shortest history that shows it."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing

import msgspec

from tidewire.clock import SystemClock
from tidewire.errors import ConfigurationError
from tidewire.model import Message
from tidewire.testing.simulation.crashtest.events import Incoming
from tidewire.testing.simulation.crashtest.forks import forked
from tidewire.testing.simulation.crashtest.recording import Entry
from tidewire.testing.simulation.crashtest.snapshots import Difference, Varying, differences, varying
from tidewire.testing.simulation.crashtest.world import Ended, Setting, Trial, run_trial

__all__ = ["Defect", "Limits", "Verdict", "crash_test"]

_NEIGHBOURS_MAX = 8
_FAKE = "put a fake in the place of what it calls: --probe names the function that does it"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Ended).decode


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is tried: at most so many *points* to die at (all of them, if there are no more) and *seconds*."""

    points: int = 1_000
    seconds: float = 120.0


class Defect(msgspec.Struct, frozen=True, kw_only=True):
    """That *handlers* (mostly one) are not idempotent: what differs, and the shortest history found that shows it.

    *events* are the numbers of those that were published, *history* is what happened, *where* the process died; empty
    where no crash is needed, because the broker handed an event out twice.
    """

    handlers: tuple[str, ...]
    events: tuple[int, ...]
    differences: tuple[Difference, ...]
    where: str
    history: tuple[Entry, ...]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. *tried* of *points* deaths and *duplicates* were tried; *seen* are the places that were compared,
    *varying* what of them is different in every run, so that only its number counts."""

    defects: tuple[Defect, ...]
    points: int
    tried: int
    duplicates: int
    seen: tuple[str, ...]
    varying: dict[str, tuple[str, ...]]

    @property
    def idempotent(self) -> bool:
        """Whether nothing was found."""
        return not self.defects


def crash_test(
    setting: Setting,
    incoming: Sequence[Incoming],
    *,
    limits: Limits | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Verdict:
    """Run a service in many worlds, each with one crash or one duplicate, and say which handlers repeat an effect.

    *incoming* come in one after another, each when nothing is left to do for the one before it.
    Every world is a forked child, in which nothing can reach the network. *on_progress* hears how many of how many
    worlds are done.

    Raises:
        ConfigurationError: the service does not run even without a crash, or reaches for the network; or a ``def``
            handler takes the context: it would wait for a loop that has one thread.
    """
    for handler in setting.service.handlers:
        if handler.blocking and handler.takes_context:
            raise ConfigurationError(
                f"{setting.service.name}.{handler.name}: a def handler with a context cannot be simulated",
                hint="make it async def",
            )
    messages = [one.message for one in incoming]
    return _Search(setting, messages, limits or Limits(), on_progress).verdict()


class _Search:
    def __init__(
        self, setting: Setting, messages: Sequence[Message], limits: Limits, on_progress: Callable[[int, int], None]
    ) -> None:
        self._setting = setting
        self._messages = messages
        self._limits = limits
        self._on_progress = on_progress
        self._clock = SystemClock()
        self._until = self._clock.ticks() + int(limits.seconds * 1e9)
        self._seen: dict[str, None] = {}
        self._varying: dict[str, frozenset[str]] = {}

    def verdict(self) -> Verdict:
        """Try, and shorten what was found."""
        everything = tuple(range(len(self._messages)))
        calm = self._calm(everything)
        _check_something_is_done(calm.entries)
        points = range(calm.first, calm.last + 1)
        chosen: Sequence[int] = points
        if len(points) > self._limits.points:
            chance = random.Random(len(points))
            chosen = sorted(chance.sample(points, self._limits.points))
        trials = [Trial(events=everything, duplicate=place) for place in everything[: self._limits.points]]
        duplicates = len(trials)
        trials += [Trial(events=everything, crash_at=point) for point in chosen]
        defects: dict[tuple[tuple[str, ...], tuple[str, ...]], Defect] = {}
        done = 0
        with closing(self._run(trials)) as worlds:
            for trial, ended in worlds:
                done += 1
                self._on_progress(done, len(trials))
                defect = self._judged(calm, trial, ended)
                if defect is not None and _group(defect) not in defects:
                    defects[_group(defect)] = self._shortest(defect, trial)
                if self._clock.ticks() > self._until:
                    break
        return Verdict(
            defects=tuple(_without_followers(defects.values())), points=len(points), tried=max(0, done - duplicates),
            duplicates=min(done, duplicates), seen=tuple(sorted(self._seen)),
            varying={place: tuple(sorted(columns)) for place, columns in sorted(self._varying.items())},
        )  # fmt: skip

    def _run(self, trials: Iterable[Trial]) -> Generator[tuple[Trial, Ended | None]]:
        """Run worlds; None is what hung, or took its whole process with it."""
        setting, messages = self._setting, self._messages

        def work(trial: Trial) -> bytes:
            try:
                ended = run_trial(setting, messages, trial=trial)
            except Exception as error:  # the probe's, mostly: whoever wrote it is to hear of it
                frame = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
                ended = Ended(snapshot={}, entries=(), trouble=f"{type(error).__name__}: {error} ({where})")
            return _encode(ended)

        with closing(forked(trials, work, jobs=os.cpu_count() or 1)) as answers:
            for trial, answer in answers:
                yield trial, _decode(answer) if answer else None

    def _calm(self, events: tuple[int, ...]) -> Ended:
        """Run *events* without a crash.

        Raises:
            ConfigurationError: even that does not work.
        """
        ((_, ended),) = self._run([Trial(events=events)])
        if ended is None:
            raise ConfigurationError(
                "the service does not come to an end, even without a crash", hint="does a handler wait for ever?"
            )
        if ended.trouble:
            raise ConfigurationError(
                f"the service does not run, even without a crash: {ended.trouble}",
                hint=_FAKE,
            )
        self._seen |= dict.fromkeys(ended.snapshot)
        return ended

    def _judged(self, calm: Ended, trial: Trial, ended: Ended | None) -> Defect | None:
        """Return what is wrong with a world, if anything: what no other run without a crash explains."""
        if ended is None or ended.trouble:
            trouble = "it hung, or ended its process" if ended is None else ended.trouble
            entries = () if ended is None else ended.entries
            return _defect(
                trial, entries, calm.entries, [Difference(place="trouble", row=trouble, expected=0, found=1)]
            )
        if not differences(calm.snapshot, ended.snapshot, ignoring=self._varying):
            return None
        # A run after it: whatever time has changed since the first one is different there, too.
        again = self._calm(trial.events)
        ignoring = _joined(self._varying, varying(calm.snapshot, again.snapshot))
        self._varying = ignoring
        found = differences(calm.snapshot, ended.snapshot, ignoring=ignoring)
        return _defect(trial, ended.entries, calm.entries, found) if found else None

    def _shortest(self, defect: Defect, trial: Trial) -> Defect:
        """Look for the same with fewer events: that one alone, then with one before it."""
        place = trial.duplicate if trial.duplicate >= 0 else self._place_of(defect)
        event = trial.events[place]
        tries = [(event,), *((before, event) for before in range(event - 1, max(-1, event - _NEIGHBOURS_MAX), -1))]
        for events in tries:
            if len(events) >= len(trial.events):
                break
            found = self._first_with(events, duplicate=trial.duplicate >= 0, like=defect)
            if found is not None:
                return found
        return defect

    def _first_with(self, events: tuple[int, ...], *, duplicate: bool, like: Defect) -> Defect | None:
        calm = self._calm(events)
        last = len(events) - 1
        points = range(calm.first, calm.last + 1)
        trials = (
            [Trial(events=events, duplicate=last)] if duplicate else [Trial(events=events, crash_at=n) for n in points]
        )
        best: tuple[int, Defect] | None = None
        for trial, ended in self._run(trials):
            if best is not None and trial.crash_at > best[0]:
                continue
            defect = self._judged(calm, trial, ended)
            if defect is not None and _group(defect) == _group(like):
                best = (trial.crash_at, defect)
        return None if best is None else best[1]

    def _place_of(self, defect: Defect) -> int:
        """Return the place of the event that was under way when the process died."""
        place = -1
        for entry in defect.history:
            place += entry.did == "publish"
            if entry.did == "kill":
                break
        return max(place, 0)


def _check_something_is_done(entries: Sequence[Entry]) -> None:
    """Refuse a handler that never returns: nothing would be tried.

    Raises:
        ConfigurationError: names it, and its last error.
    """
    returned = {entry.handler for entry in entries if entry.did == "end"}
    for entry in reversed(entries):
        if entry.did == "raise" and entry.handler not in returned:
            raise ConfigurationError(
                f"{entry.handler} fails with every event, even without a crash: {entry.detail}", hint=_FAKE
            )


def _defect(trial: Trial, entries: Sequence[Entry], calm: Sequence[Entry], found: Sequence[Difference]) -> Defect:
    kill = next((entry for entry in entries if entry.did == "kill"), None)
    return Defect(
        handlers=_blamed(entries, calm, found),
        events=trial.events,
        differences=tuple(found),
        where="" if kill is None else kill.detail,
        history=tuple(entries),
    )


def _blamed(entries: Sequence[Entry], calm: Sequence[Entry], found: Sequence[Difference]) -> tuple[str, ...]:
    """Return who did it: who has noted the effects that differ, else who was killed in the act, else who ran again."""
    effects = {difference.place.removeprefix("effect ") for difference in found}
    noted = [entry.handler for entry in [*entries, *calm] if entry.did == "effect" and entry.detail in effects]
    killed = [entry.handler for entry in entries if entry.did == "kill" and entry.handler]
    again = [name for name in _starts(entries) if _starts(entries)[name] > _starts(calm).get(name, 0)]
    return tuple(dict.fromkeys(noted or killed or again or list(_starts(calm))))


def _starts(entries: Sequence[Entry]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in entries:
        if entry.did == "start":
            counts[entry.handler] = counts.get(entry.handler, 0) + 1
    return counts


def _group(defect: Defect) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return defect.handlers, tuple(sorted({difference.place for difference in defect.differences}))


def _without_followers(defects: Iterable[Defect]) -> Iterator[Defect]:
    """Give one defect for each handler, the one with the shortest history."""
    best: dict[tuple[str, ...], Defect] = {}
    for defect in defects:
        known = best.get(defect.handlers)
        if known is None or (len(defect.events), len(defect.history)) < (len(known.events), len(known.history)):
            best[defect.handlers] = defect
    yield from best.values()


def _joined(one: Varying, other: Varying) -> dict[str, frozenset[str]]:
    return {place: one.get(place, frozenset()) | other.get(place, frozenset()) for place in one.keys() | other.keys()}
