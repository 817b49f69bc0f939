"""The merged log of ``tidewire dev``: one line for people, or one JSON object, for whatever any service tells."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tidewire.clock import SystemClock, moment

__all__ = ["DEV", "Log", "colour_wanted"]

DEV = "dev"
"""The name in the service column of what ``dev`` itself tells."""

_COLOURS = (36, 32, 35, 34, 96, 92, 95, 94)
_LEVELS = {"warning": 33, "error": 31, "critical": 31}
# Fields that every line has a place of its own for, or that say nothing to whoever watches one machine.
_HIDDEN = frozenset({"time", "level", "event", "process", "service", "group", "traceback"})
# It is true of the machine, and each process tells it for each of its files.
_ONCE = "tidewire.sqlite.old_version"


class Log:
    """Writes lines to stdout. *colour*: paint the service column and the levels; the words are there without it.

    *on_gone* is called once nobody reads stdout any more; whatever comes then is written nowhere.
    """

    def __init__(self, *, as_json: bool, colour: bool) -> None:
        self._as_json = as_json
        self._colour = colour
        self._clock = SystemClock()
        self._width = len(DEV)
        self._warned = False
        self.on_gone: Callable[[], None] = lambda: None
        self._painted: dict[str, int] = {}

    def expect(self, services: Iterable[str]) -> None:
        """Make room in the service column for these names."""
        self._width = max([self._width, *(min(len(name), 24) for name in services)])

    def line(self, service: str, event: str, *, level: str = "info", text: str = "", **fields: Any) -> None:
        """Write that *event* happened in *service*: for people *text*, or else the name and its fields."""
        us = int(fields.pop("at_us", 0)) or self._clock.now_us()
        time = moment(us).isoformat(timespec="microseconds")
        if self._as_json:
            known = {"text": text} if text else {}
            told = {"time": time, "service": service, "level": level, "event": event, **known, **fields}
            self.write(msgspec.json.encode(told).decode())
            return
        spoken = text or " ".join([event.removeprefix("tidewire."), *_spoken(fields)])
        lines = spoken.splitlines() or [""]
        word = "" if level in ("info", "debug") else self._paint(level, _LEVELS.get(level, 0)) + " "
        head = f"{time[11:23]} {self._paint(service.ljust(self._width), self._colour_of(service))}  "
        indent = " " * (len(time[11:23]) + self._width + 3)
        self.write("\n".join([head + word + lines[0], *(indent + one for one in lines[1:])]))

    def write(self, text: str) -> None:
        """Write *text* as it is, and a line's end."""
        try:
            print(text, flush=True)
        except BrokenPipeError:
            sys.stdout = None
            self.on_gone()

    def output(self, service: str, raw: bytes) -> None:
        """Write a line that the process of *service* wrote: a log record of its own, or whatever it printed."""
        text = raw.decode(errors="replace").rstrip("\r\n")
        record = _record(text)
        if record is None:
            self.line(service, "output", text=text)
            return
        event, level = str(record["event"]), str(record.get("level", "info"))
        if event == _ONCE:
            if self._warned:
                return
            self._warned = True
        told = "" if self._as_json else _told(event, record)
        fields = {name: value for name, value in record.items() if name not in ("time", "level", "event", "service")}
        self.line(service, event, level=level, text=told, **fields)

    def report(self, service: str, told: Mapping[str, Any]) -> None:
        """Write what the process of *service* told about an event."""
        if told["what"] == "fact":
            took = f" in {told['took_us'] / 1_000:.1f} ms" if told["took_us"] else ""
            detail = f" ({told['detail']})" if told["detail"] else ""
            text = f"{told['kind']} {told['type']} {told['event_id']}{took}{detail}"
            fields = {name: told[name] for name in ("type", "event_id", "topic", "took_us", "detail") if told[name]}
            self.line(service, str(told["kind"]), text="" if self._as_json else text, at_us=told["at"], **fields)
        elif told["what"] == "left_out":
            text = f"… and {told['count']:,} more events"
            self.line(service, "left_out", text="" if self._as_json else text, count=told["count"])

    def problem(self, service: str, message: str, *, hint: str = "", **fields: Any) -> None:
        """Write that something needs a person, and what would mend it."""
        if self._as_json:
            self.line(service, "problem", level="error", message=message, hint=hint, **fields)
        else:
            self.line(service, "problem", level="error", text=f"{message}\nhint: {hint}" if hint else message)

    def _colour_of(self, service: str) -> int:
        if service == DEV:
            return 1
        return self._painted.setdefault(service, _COLOURS[len(self._painted) % len(_COLOURS)])

    def _paint(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and code else text


def colour_wanted(*, refused: bool) -> bool:
    """Whether stdout shows colour: it is a terminal, and nobody refused."""
    return sys.stdout.isatty() and not refused


def _record(text: str) -> dict[str, Any] | None:
    """Return a log record of ours, or None for any other text."""
    if not text.startswith('{"time"'):
        return None
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return None
    return found if "event" in found else None


def _told(event: str, record: Mapping[str, Any]) -> str:
    if event == "tidewire.dev.raised":
        head = f"{record['error_type']} in {record['type']} {record['event_id']}, attempt {record['attempt']}"
        return f"{head}\n{record['traceback']}" if "traceback" in record else f"{head}: {record['error']}"
    head = " ".join([event.removeprefix("tidewire."), *_spoken(record)])
    return f"{head}\n{record['traceback']}" if "traceback" in record else head


def _spoken(fields: Mapping[str, Any]) -> Sequence[str]:
    return [
        f"{name}={_short(value)}" for name, value in fields.items() if name not in _HIDDEN and value not in ("", None)
    ]


def _short(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ' "\n=') else text
