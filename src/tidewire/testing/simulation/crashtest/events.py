"""The events of a crash test, from JSON lines: all of them checked before any is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from tidewire.errors import ConfigurationError, DecodeError, TidewireError
from tidewire.model import Message
from tidewire.rules.cloudevents import check_event_id, from_structured
from tidewire.rules.events import EventType
from tidewire.rules.outgoing import Stamp
from tidewire.rules.upcasts import decoders
from tidewire.runtime.parts import Parts
from tidewire.runtime.service import Service
from tidewire.testing.simulation.clock import START_US

__all__ = ["Incoming", "events_in"]

_SOURCE = "tidewire-crashtest"
_PROBLEMS_MAX = 10


class Incoming(msgspec.Struct, frozen=True):
    """An event that is to come in, and the line it was on."""

    line: int
    message: Message


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line that is no CloudEvent."""

    type: str
    data: msgspec.Raw
    id: str = ""


def events_in(text: bytes, service: Service, *, where: str = "events") -> Sequence[Incoming]:
    """Return the events of *text*: JSON lines of ``{"type": …, "data": …}``, or of CloudEvents.

    Raises:
        ConfigurationError: names every line that is no event of a type that *service* handles, up to ten.
    """
    types = {handler.event.type: handler.event for handler in service.handlers if handler.event.kind == "integration"}
    incoming: list[Incoming] = []
    problems: list[str] = []
    ids: dict[tuple[str, str], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            message = _message(line, number, types=types, service=service)
            first = ids.setdefault((message.source, message.id), number)
            if first != number:
                raise DecodeError(f"the id {message.id!r} is that of line {first}, too")
            incoming.append(Incoming(number, message))
        except TidewireError as error:
            problems.append(f"line {number}: {error.message}")
    if problems:
        more = f"\n  and {len(problems) - _PROBLEMS_MAX} more" if len(problems) > _PROBLEMS_MAX else ""
        raise ConfigurationError(
            f"{where}: no events in\n  " + "\n  ".join(problems[:_PROBLEMS_MAX]) + more,
            hint='each line is {"type": "…", "data": {…}} or a CloudEvent in JSON; '
            f"{service.name} handles: {', '.join(sorted(types)) or 'no integration event'}",
        )
    if not incoming:
        raise ConfigurationError(f"{where} has no events", hint='one in each line: {"type": "…", "data": {…}}')
    return incoming


def _message(line: bytes, number: int, *, types: Mapping[str, EventType], service: Service) -> Message:
    headers, body = _read(line, number)
    definition = types.get(headers["ce-type"])
    if definition is None:
        near = get_close_matches(headers["ce-type"], types, n=1)
        question = f"; did you mean {near[0]!r}?" if near else ""
        raise DecodeError(f"{service.name} does not handle {headers['ce-type']!r}{question}")
    codec = Parts().codec_for(definition.cls)
    version = headers.setdefault("ce-schemaversion", str(definition.version))
    readers = decoders(definition, codec, service.upcasts)
    if version not in readers:
        raise DecodeError(f"{definition.type} version {version}: {service.name} reads {', '.join(sorted(readers))}")
    event: Any = readers[version](body)
    event_id = headers["ce-id"]
    check_event_id(event_id)
    made = Stamp(definition, codec, headers["ce-source"]).message(event, event_id=event_id, now_us=START_US)
    return msgspec.structs.replace(
        made, headers={**made.headers, **headers}, body=body, key=headers.get("ce-partitionkey", made.key)
    )


def _read(line: bytes, number: int) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a line.

    Raises:
        DecodeError: it is neither of the two.
    """
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        if "specversion" in fields:
            return from_structured(line)
        plain = msgspec.json.decode(line, type=Line)
    except msgspec.MsgspecError as error:
        raise DecodeError(str(error)) from None
    headers = {"ce-id": plain.id or f"line-{number}", "ce-source": _SOURCE, "ce-type": plain.type}
    return headers, bytes(plain.data)
