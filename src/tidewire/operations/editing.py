"""A dead letter mended: a copy with a new id goes to the group, the original stays unless it is discarded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import TypeAlias, TypeGuard

import msgspec

from tidewire.errors import ConfigurationError, DecodeError, PublishRejected, PublishUnknown
from tidewire.model import Act, InboxChannel, Message
from tidewire.operations.audit import Operator, ended, ledger_of
from tidewire.operations.letters import inspector_of
from tidewire.operations.selection import Letter, is_json
from tidewire.protocols import Transport
from tidewire.rules.cloudevents import from_structured, is_structured
from tidewire.rules.letters import EDITED_FROM, discarded, redriven

__all__ = ["BodyFrom", "edit", "edited_copy", "set_fields", "value_of"]

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
# Numbers keep every digit: 0.10 stays 0.10, and a large one is not rounded to a float.
_decode = msgspec.json.Decoder(float_hook=Decimal).decode
_encode = msgspec.json.Encoder(decimal_format="number").encode


BodyFrom: TypeAlias = Callable[[bytes], bytes]
"""Makes the new body of an event out of its old one, or raises ConfigurationError."""


class Edited(msgspec.Struct, frozen=True, kw_only=True):
    """What an edit did: the id of the copy, and whether the original has left the dead channel."""

    act_id: str
    original: str
    copy: str
    discarded: bool


def set_fields(values: Mapping[str, object]) -> BodyFrom:
    """Return what sets fields of a JSON body: *values* by path, such as ``customer.id`` or ``lines[0].quantity``.

    Every object and list on the way must be there; the last name of a path may be new in its object.

    Raises (from what it returns):
        ConfigurationError: the body is not JSON, or a path leads nowhere; names the place.
    """
    steps = {path: _steps(path) for path in values}

    def changed(body: bytes) -> bytes:
        try:
            document: object = _decode(body)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ConfigurationError(
                f"the body is not JSON ({error}), so no field of it can be set", hint="give a whole body with --body"
            ) from None
        for path, value in values.items():
            _set(document, steps[path], path, value)
        return _encode(document)

    return changed


def value_of(text: str) -> object:
    """Return the value that a person typed: JSON where it is JSON, numbers with all their digits, else the text."""
    try:
        return _decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return text


def edited_copy(letter: Letter, new_body: BodyFrom, *, event_id: str) -> Message:
    """Return the copy of *letter* as it goes to its group: a new id, the new body, and the header that links back.

    A structured CloudEvent becomes a binary one, so that the data alone is edited.

    Raises:
        ConfigurationError: the letter's body cannot be edited.
    """
    message = _unwrapped(letter.message)
    headers = {name: value for name, value in redriven(message).headers.items() if name != "tw-redriven"}
    headers |= {"ce-id": event_id, EDITED_FROM: letter.message.id}
    body = new_body(message.body)
    if is_json(message):
        try:
            _decode(body)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ConfigurationError(f"the new body is not JSON: {error}") from None
    to = InboxChannel(letter.channel.topic, letter.channel.group)
    return msgspec.structs.replace(message, to=to, id=event_id, headers=headers, body=body, not_before=None)


async def edit(
    transport: Transport,
    letter: Letter,
    new_body: BodyFrom,
    *,
    by: Operator,
    reason: str = "",
    discard_original: bool = False,
) -> Edited:
    """Send a mended copy of *letter* to its group; with *discard_original*, for a *reason*, give the original up.

    The note that gives the original up goes before the copy, so that the copy does not wait for it. The copy is
    confirmed before the original is removed: killed in between, both are there. Neither values nor bodies are
    written to the audit.

    Raises:
        ConfigurationError: the body cannot be edited, or the original is to go without a reason.
        PublishRejected, PublishUnknown: the broker did not confirm the copy; the original is where it was.
    """
    if discard_original and not reason.strip():
        raise ConfigurationError("a discard needs a reason", hint="say it with --reason")
    copy = edited_copy(letter, new_body, event_id=by.ids.event_id())
    detail = {"from": letter.message.id, "to": copy.id, "discard": discard_original}
    begun = Act(
        id=by.ids.event_id(),
        at=by.clock.now_us(),
        who=by.who,
        verb="edit",
        topic=letter.channel.topic,
        group=letter.channel.group,
        state="begun",
        reason=reason,
        count=1,
        detail=msgspec.json.encode(detail).decode(),
    )
    await ledger_of(transport).note(begun)
    notes = [discarded(letter.message, reason)] if discard_original and letter.message.key is not None else []
    try:
        await _confirmed(transport, [*notes, copy])
    except PublishRejected:
        await ended(transport, begun, by=by, count=0, detail=detail, failed=True)
        raise
    gone = 0
    if discard_original:
        gone = await inspector_of(transport).remove(letter.channel, [letter.position])
    await ended(transport, begun, by=by, count=1, detail={**detail, "discarded": gone})
    return Edited(act_id=begun.id, original=letter.message.id, copy=copy.id, discarded=gone > 0)


async def _confirmed(transport: Transport, messages: Sequence[Message]) -> None:
    for receipt in await transport.publish(messages):
        if receipt.status == "unknown":
            raise PublishUnknown("the broker may have the copy", event_id=receipt.id, hint="look with `tidewire find`")
        if not receipt.ok:
            raise PublishRejected(
                f"the broker refused the copy: {receipt.reason} {receipt.detail}".rstrip(), event_id=receipt.id
            )


def _unwrapped(message: Message) -> Message:
    if not is_structured(message.headers.get("content-type", "")):
        return message
    try:
        headers, body = from_structured(message.body)
    except DecodeError as error:
        raise ConfigurationError(
            f"the letter says it is a structured CloudEvent and is none: {error.message}",
            hint="publish the event anew and discard this letter",
        ) from None
    rest = {name: value for name, value in message.headers.items() if name != "content-type"}
    key = headers.get("ce-partitionkey", message.key)
    return msgspec.structs.replace(
        message, source=headers["ce-source"], key=key, headers={**rest, **headers}, body=body
    )


def _steps(path: str) -> list[str | int]:
    text = path.removeprefix("$")
    found = list(_STEP.finditer(text))
    if not found or "".join(step[0] for step in found) != text or (path[0] != "$" and text[0] == "."):
        raise ConfigurationError(f"{path!r} is no path", hint="for example customer.id or lines[0].quantity")
    return [step[1] if step[1] is not None else int(step[2]) for step in found]


def _set(document: object, steps: Sequence[str | int], path: str, value: object) -> None:
    place = document
    for step in steps[:-1]:
        place = _inside(place, step, path)
    last = steps[-1]
    if isinstance(last, str) and _is_object(place):
        place[last] = value
        return
    if isinstance(last, str) or not _is_list(place) or last >= len(place):
        raise _nowhere(path, last)
    place[last] = value


def _inside(place: object, step: str | int, path: str) -> object:
    if isinstance(step, str) and _is_object(place) and step in place:
        return place[step]
    if isinstance(step, int) and _is_list(place) and step < len(place):
        return place[step]
    raise _nowhere(path, step)


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _is_list(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def _nowhere(path: str, step: str | int) -> ConfigurationError:
    return ConfigurationError(
        f"{path!r} leads nowhere in this body: there is no {step!r}", hint="`show` prints the body"
    )
