"""Checks about what keeps the promises: lanes, attempts, marks, timers, sagas, bounds, health, metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tidewire.testing.simulation.checkers.history import History, Op, Violation

__all__ = [
    "attempts_bounded",
    "bounds",
    "commits",
    "drained_in_time",
    "exclusive",
    "fenced",
    "healthy",
    "marked",
    "metrics",
    "outbox_empty",
    "sagas_ended",
    "timers_once",
]

_DEAF_MAX = 1_000_000


def commits(history: History) -> Iterator[Violation]:
    """C8: within one generation of a lane, commits never go back, and none comes from an earlier generation."""
    last: dict[tuple[str, str], Op] = {}
    for op in history.of("commit", "ok"):
        before = last.get((op.group, op.lane))
        if before is not None and op.epoch < before.epoch:
            yield Violation(
                "C8", f"{op.group} {op.lane}: a commit of generation {op.epoch} after one of {before.epoch}"
            )
        elif before is not None and op.epoch == before.epoch and op.n < before.n:
            yield Violation("C8", f"{op.group} {op.lane}: committed {op.n} after {before.n}")
        last[op.group, op.lane] = op


def fenced(history: History) -> Iterator[Violation]:
    """C9: no effect under an epoch, once the store has adopted a later one of that lane."""
    adopted: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for op in history.of("adopt", "ok"):
        adopted.setdefault((op.group, op.lane), []).append((op.number, op.epoch))
    for op in history.of("effect", "ok"):
        if not op.epoch:
            continue
        later = [epoch for number, epoch in adopted.get((op.group, op.lane), ()) if number < op.number]
        if later and max(later) > op.epoch:
            yield Violation(
                "C9", f"{op.group}.{op.handler}: {op.event} took effect under epoch {op.epoch} of {op.lane}, "
                f"when {max(later)} had taken it over"
            )  # fmt: skip


def attempts_bounded(history: History) -> Iterator[Violation]:
    """C10: an event fails no more often than its policy allows, and is given up only when it has failed so often.

    Within one cycle of redrives, all handlers of a group together. Each fault of the run (``crash``) may hide a
    failure that was not written down. An attempt that was cut off is none.
    """
    limits: dict[str, int] = {}
    for one in history.audience:
        if one.attempts_max:
            limits[one.group] = max(one.attempts_max, limits.get(one.group, 0))
    hidden = sum(max(op.n, 1) for op in history.of("crash"))
    failed: dict[tuple[str, str, int], int] = {}
    begun: dict[tuple[str, str], Counter[str]] = {}
    for op in history.ops:
        if op.f == "attempt" and op.type == "invoke":  # each attempt begins with the same handler
            begun.setdefault((op.group, op.event), Counter())[op.handler] += 1
        elif op.f == "attempt" and op.detail == "cut off":
            begun.setdefault((op.group, op.event), Counter())[op.handler] -= 1
        elif op.f == "attempt" and op.type == "fail":
            name = (op.group, op.event, op.cycle)
            failed[name] = failed.get(name, 0) + 1
        elif op.f == "dead" and op.type == "fail":
            yield Violation("C10", f"{op.group}: {op.event} was given up for an outage: {op.detail}")
        elif op.f == "dead" and op.detail == "exhausted":
            wanted = limits.get(op.group, 0)
            count = max(begun.get((op.group, op.event), Counter[str]()).values(), default=0)
            if count < wanted:
                yield Violation("C10", f"{op.group}: {op.event} was given up after {count} attempts, not {wanted}")
    for (group, event, cycle), count in failed.items():
        limit = limits.get(group, 0)
        if limit and count > limit + hidden:
            yield Violation("C10", f"{group}: {event} failed {count} times in cycle {cycle}, at most {limit}")


def marked(history: History) -> Iterator[Violation]:
    """C11: there is an inbox mark for every effect, and an effect for every mark."""
    once = {(one.group, one.handler) for one in history.audience if one.once}
    marks = {(op.group, op.handler, op.run, op.event) for op in history.of("mark", "ok")}
    effects = {
        (op.group, op.handler, op.run, op.event) for op in history.of("effect", "ok") if (op.group, op.handler) in once
    }
    for group, handler, run, event in sorted(effects - marks):
        yield Violation("C11", f"{group}.{handler}: {event} took effect in run {run} and has no mark")
    for group, handler, run, event in sorted(marks - effects):
        if (group, handler) in once:
            yield Violation("C11", f"{group}.{handler}: {event} is marked in run {run} and has no effect")


def outbox_empty(history: History) -> Iterator[Violation]:
    """C12: after the drain every outbox is empty, and nothing is left in its quarantine."""
    for op in history.of("outbox"):
        if op.n > 0 and history.complete:
            yield Violation(
                "C12", f"{op.group}: {op.n} rows are left in the outbox{f' ({op.detail})' * bool(op.detail)}"
            )
    for op in history.of("stuck"):
        yield Violation("C12", f"{op.group}: {op.event} is in the quarantine of the outbox: {op.detail}")


def exclusive(history: History) -> Iterator[Violation]:
    """C13: a lane has one owner at a time: an epoch is given out once, and nobody settles under an overtaken one."""
    owner: dict[tuple[str, str, int], str] = {}
    given: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for place, op in enumerate(history.ops):
        if op.f == "lane" and op.type == "invoke":
            before = owner.setdefault((op.group, op.lane, op.epoch), op.process)
            if before != op.process:
                yield Violation("C13", f"{op.group} {op.lane}: epoch {op.epoch} was given to {before} and {op.process}")
            given.setdefault((op.group, op.lane), []).append((place, op.epoch))
        elif op.f == "settle" and op.type == "ok" and op.epoch:
            asked = op.number or place
            current = max((epoch for at, epoch in given.get((op.group, op.lane), ()) if at < asked), default=0)
            if op.epoch < current:
                yield Violation(
                    "C13", f"{op.group} {op.lane}: {op.process} settled {op.event} under epoch {op.epoch}, "
                    f"when {current} had been given out"
                )  # fmt: skip


def sagas_ended(history: History) -> Iterator[Violation]:
    """C15: every saga that began is done, or compensated, and never both."""
    ends: dict[str, set[str]] = {}
    for op in history.of("saga"):
        states = ends.setdefault(op.event, set())
        if op.type == "ok":
            states.add(op.detail)
    for saga, states in ends.items():
        if history.complete and len(states & {"done", "compensated"}) != 1:
            yield Violation("C15", f"saga {saga} ended as {', '.join(sorted(states)) or 'nothing'}")


def timers_once(history: History) -> Iterator[Violation]:
    """C16: a timer goes off once, and not before its time."""
    due = {(op.group, op.event): op.due for op in history.of("timer", "invoke")}
    fired: dict[tuple[str, str], int] = {}
    for op in history.of("timer", "ok"):
        name = (op.group, op.event)
        fired[name] = fired.get(name, 0) + 1
        if fired[name] == 2:
            yield Violation("C16", f"{op.group}: timer {op.event} went off twice")
        if name in due and op.at < due[name]:
            yield Violation("C16", f"{op.group}: timer {op.event} went off {due[name] - op.at} µs before its time")
    if history.complete:
        given_up = {(op.group, op.event) for op in history.ops if op.f in ("dead", "discard", "expire")}
        for group, event in sorted(due.keys() - fired.keys() - given_up):
            yield Violation("C16", f"{group}: timer {event} never went off")


def bounds(history: History) -> Iterator[Violation]:
    """C17: what is bounded stays within its bound."""
    for op in history.of("bound"):
        if op.n > op.due:
            yield Violation("C17", f"{op.process}{op.group}: {op.detail} is {op.n}, at most {op.due}")


def drained_in_time(history: History) -> Iterator[Violation]:
    """C18: when faults have ended, everything is drained within the bound."""
    healed = next(history.of("heal"), None)
    drained = next(history.of("drained"), None)
    if healed is None:
        return
    if drained is None or drained.type != "ok":
        why = "" if drained is None else f": {drained.detail}"
        yield Violation("C18", f"not drained {healed.due / 1e6:g} s after the faults had ended{why}")
    elif drained.at - healed.at > healed.due:
        yield Violation("C18", f"drained after {(drained.at - healed.at) / 1e6:g} s, at most {healed.due / 1e6:g} s")


def healthy(history: History) -> Iterator[Violation]:
    """C19: a process that is deaf does not say that it is ready."""
    for op in history.of("health"):
        if op.detail == "ready" and op.n > _DEAF_MAX:
            yield Violation("C19", f"{op.process} says it is ready and has been deaf for {op.n / 1e6:g} s")


def metrics(history: History) -> Iterator[Violation]:
    """C20: what observers heard is what happened."""
    told: dict[tuple[str, str], int] = {}
    for op in history.of("fact", "ok"):
        told[op.process, op.detail] = told.get((op.process, op.detail), 0) + op.n
    for op in history.of("fact", "invoke"):
        heard = told.get((op.process, op.detail), 0)
        if heard != op.n:
            yield Violation("C20", f"{op.process}: {op.n} events {op.detail}, the observer heard of {heard}")
