"""What was found, told to people."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tidewire.testing.simulation.crashtest.events import Incoming
from tidewire.testing.simulation.crashtest.recording import Entry
from tidewire.testing.simulation.crashtest.search import Defect

__all__ = ["told"]

_SHOWN_MAX = 8


def told(defect: Defect, incoming: Sequence[Incoming]) -> list[str]:
    """Return the lines of a defect: who, what differs, and what happened, step by step."""
    lines = [f"{' or '.join(defect.handlers) or 'the service'} is not idempotent"]
    lines += [f"  {difference}" for difference in defect.differences[:_SHOWN_MAX]]
    if len(defect.differences) > _SHOWN_MAX:
        lines.append(f"  and {len(defect.differences) - _SHOWN_MAX} more")
    events = "1 event" if len(defect.events) == 1 else f"{len(defect.events)} events"
    lines.append(f"  the shortest history that shows it: {events}, {'1 crash' if defect.where else '1 duplicate'}")
    known = {one.message.id: one for one in incoming}
    lines += [f"    {number}. {_step(entry, known)}" for number, entry in enumerate(defect.history, 1)]
    return lines


def _step(entry: Entry, known: dict[str, Incoming]) -> str:
    came = known.get(entry.event)
    event = entry.event if came is None else f"{came.message.headers['ce-type']} of line {came.line}"
    match entry.did:
        case "publish":
            return f"{event} comes in"
        case "duplicate":
            return f"{event} comes in a second time, with the same id"
        case "start":
            return f"{entry.handler} begins, attempt {entry.attempt}"
        case "effect":
            values = " ".join(msgspec.json.encode(value).decode() for value in entry.values)
            return f"{entry.handler} has an effect outside: {entry.detail} {values}".rstrip()
        case "raise":
            return f"{entry.handler} fails: {entry.detail}"
        case "end":
            return f"{entry.handler} returns"
        case "commit":
            return "the unit is committed"
        case "kill":
            return f"the process dies {entry.detail}; another one is started"
