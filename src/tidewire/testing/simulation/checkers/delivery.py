"""Checks about events on their way: C1 to C7, C14. Each takes a history once, from front to back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from tidewire.testing.simulation.checkers.history import Audience, History, Op, Violation

__all__ = ["aborted", "conserved", "digests", "key_order", "lost", "phantom", "repeated", "rows"]

_Once: TypeAlias = tuple[str, str, int, str]


class _Published:
    """What is known of the publishes of a history, by event."""

    def __init__(self, history: History) -> None:
        self.ok: dict[str, Op] = {}
        self.open: dict[str, Op] = {}
        self.failed: dict[str, Op] = {}
        for op in history.of("publish"):
            if op.type == "ok":
                self.ok[op.event] = op
            elif op.type == "fail":
                self.failed[op.event] = op
            else:
                self.open[op.event] = op
        for event in self.ok:
            self.failed.pop(event, None)

    @property
    def tried(self) -> set[str]:
        """Every event that somebody tried to publish."""
        return self.ok.keys() | self.open.keys() | self.failed.keys()


def _places(history: History) -> dict[tuple[str, str, str], list[str]]:
    """Return where (group, handler, event) has ended; a dead letter, a discard counts for the whole group."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for op in history.ops:
        if op.f == "effect" and op.type == "ok":
            places.setdefault((op.group, op.handler, op.event), []).append("effect")
        elif op.f in ("dead", "discard", "expire") and op.type == "ok":
            places.setdefault((op.group, "", op.event), []).append(op.f)
    return places


def _expected(history: History) -> Iterator[tuple[Op, Audience]]:
    audiences = history.audiences()
    for op in _Published(history).ok.values():
        for one in audiences.get(op.of, ()):
            yield op, one


def conserved(history: History) -> Iterator[Violation]:
    """C1: every event that was accepted has ended, for each group, in one place: effect, dead, discarded, expired."""
    if not history.complete:
        return
    places = _places(history)
    stuck = {op.event for op in history.of("stuck")}
    wanted: dict[tuple[str, str], list[str]] = {}
    for op, one in _expected(history):
        if op.event not in stuck:
            wanted.setdefault((one.group, op.event), []).append(one.handler)
    for (group, event), handlers in wanted.items():
        took_effect = [handler for handler in handlers if "effect" in places.get((group, handler, event), ())]
        gone = places.get((group, "", event), [])
        if not gone and len(took_effect) < len(handlers):
            missing = sorted(set(handlers) - set(took_effect))
            yield Violation("C1", f"{event} has ended nowhere for {group}: no effect of {', '.join(missing)}")
        elif gone and len(took_effect) == len(handlers) and "discard" not in gone:
            yield Violation("C1", f"{event} of {group} is in two places: effect and {gone[0]}")
        elif gone.count("dead") > 1:
            yield Violation("C1", f"{event} of {group} is {gone.count('dead')} dead letters")


def lost(history: History) -> Iterator[Violation]:
    """C2: no event that was accepted is lost: each group has its effect, or it is where a person can find it."""
    if not history.complete:
        return
    places = _places(history)
    stuck = {op.event for op in history.of("stuck")}
    for op, one in _expected(history):
        if op.event in stuck:
            continue
        if (one.group, one.handler, op.event) not in places and (one.group, "", op.event) not in places:
            yield Violation("C2", f"{op.event} ({op.of}) is lost for {one.group}.{one.handler}", one.group, op.event)


def phantom(history: History) -> Iterator[Violation]:
    """C3: nothing takes effect, or is a dead letter, that nobody tried to publish."""
    tried = _Published(history).tried
    for op in history.ops:
        if op.f in ("effect", "dead") and op.type == "ok" and op.event not in tried:
            what = f"{op.group}.{op.handler}: {op.f} of {op.event}, which nobody published"
            yield Violation("C3", what, op.group, op.event)


def aborted(history: History) -> Iterator[Violation]:
    """C4: nothing takes effect that was certainly not published: refused, or rolled back."""
    published = _Published(history)
    for op in history.of("effect", "ok"):
        if op.event in published.failed and op.event not in published.open:
            yield Violation("C4", f"{op.group}.{op.handler}: effect of {op.event}, whose publish failed")


def repeated(history: History) -> Iterator[Violation]:
    """C5: no effect happens twice: for one event, one handler and one run there is at most one."""
    once = {(one.group, one.handler) for one in history.audience if one.once}
    seen: dict[_Once, int] = {}
    for op in history.of("effect", "ok"):
        if (op.group, op.handler) in once:
            name = (op.group, op.handler, op.run, op.event)
            seen[name] = seen.get(name, 0) + 1
    for (group, handler, run, event), count in seen.items():
        if count > 1:
            yield Violation("C5", f"{group}.{handler}: {count} effects of {event} in run {run}", group, event)


def rows(history: History) -> Iterator[Violation]:
    """C6: rows of the business and its events are the same, both ways.

    A ``row`` says that *event* was to be published with it: it was, and every event of its *stream* has its row.
    """
    found = {op.event: op for op in history.of("row", "ok")}
    streams = {op.stream for op in found.values()} | {op.stream for op in history.of("row", "invoke")}
    seen = {op.event for op in history.of("effect", "ok")} | {op.event for op in history.of("dead", "ok")}
    stuck = {op.event for op in history.of("stuck")}
    published = _Published(history)
    if history.complete:
        audiences = history.audiences()
        for event, op in found.items():
            if audiences.get(op.of) and event not in seen | stuck | published.open.keys():
                gone = {one.event for one in history.of("discard")} | {one.event for one in history.of("expire")}
                if event not in gone:
                    yield Violation("C6", f"the row of {event} is there, its event never came")
    for event in sorted(seen):
        said = published.ok.get(event) or published.open.get(event) or published.failed.get(event)
        if said is not None and said.stream in streams and event not in found:
            yield Violation("C6", f"{event} was published, and its row is not there")


def key_order(history: History) -> Iterator[Violation]:
    """C7: first effects of one key come in the order of its events, also over dead letters that hold their key."""
    rules = {(one.group, one.handler): one for one in history.audience}
    last: dict[tuple[str, str, int, str, str], tuple[int, str]] = {}
    seen: set[_Once] = set()
    effects = [op for op in history.of("effect", "ok") if op.n >= 0]
    effects.sort(key=lambda op: (op.group, op.number))
    for op in effects:
        rule = rules.get((op.group, op.handler))
        name = (op.group, op.handler, op.run, op.event)
        if rule is None or not rule.ordered or name in seen or (op.cycle and not rule.hold):
            continue
        seen.add(name)
        lane = (op.group, op.handler, op.run, op.stream, op.key)
        before = last.get(lane)
        if before is not None and before[0] > op.n:
            what = f"{op.group}.{op.handler}, key {op.key}: {op.event} (n={op.n}) after {before[1]} (n={before[0]})"
            yield Violation("C7", what, op.group, op.event)
        else:
            last[lane] = (op.n, op.event)


def digests(history: History) -> Iterator[Violation]:
    """C14: an event arrives with the body and the source it was published with, whose digest *digest* is."""
    bodies = {op.event: op.digest for op in history.of("publish") if op.digest}
    for op in history.ops:
        if op.f in ("effect", "dead") and op.digest and bodies.get(op.event, op.digest) != op.digest:
            yield Violation("C14", f"{op.group}: what {op.event} says, or who says it, has changed on its way")
