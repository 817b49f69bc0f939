"""Plain messages: how what a foreign producer sends, which is no CloudEvent, becomes an event of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from hashlib import blake2b
from typing import TypeAlias

import msgspec

from tidewire.clock import moment
from tidewire.errors import ConfigurationError, DecodeError
from tidewire.model import Delivery, InboxChannel, Message, Reason
from tidewire.rules.events import EventType, definition_of
from tidewire.rules.names import has_control

__all__ = [
    "Body",
    "ContentHash",
    "Header",
    "Mapped",
    "Plain",
    "PlainTopic",
    "Position",
    "Unmapped",
    "plain_topic",
    "read_plain",
]

_NUMBER = re.compile(r"[0-9]{1,17}(\.[0-9]{1,17})?\Z")
_TEXT_MAX = 256
_MILLISECONDS_FROM = 100_000_000_000  # as seconds, the year 5138
_AT_MAX = 253_402_300_800_000_000  # µs to the end of the year 9999


class Header(msgspec.Struct, frozen=True):
    """The value of a header, by its exact name; RabbitMQ's properties are headers too (``message-id``)."""

    name: str

    def __str__(self) -> str:
        return f"the header {self.name}"


class Body(msgspec.Struct, frozen=True):
    """The value of a field of a JSON body; dots lead into objects (``order.id``)."""

    path: str

    def __str__(self) -> str:
        return f"the field {self.path} of the body"


class Position(msgspec.Struct, frozen=True):
    """The message's place on the broker: lane and position.

    The same message has it whenever it is read, so that a redelivery is recognised; what its producer sends twice
    are two messages. Brokers whose positions do not last (RabbitMQ) have none, and a service that asks for it is
    refused there.
    """

    def __str__(self) -> str:
        return "the position on the broker"


class ContentHash(msgspec.Struct, frozen=True):
    """A hash of the body and of the broker's key.

    What is sent twice is recognised; two facts that say the same in the same words are taken for one.
    """

    def __str__(self) -> str:
        return "a hash of the content"


_IDENTITIES: set[type] = {Header, Body, Position, ContentHash}

Where: TypeAlias = Header | Body
Identity: TypeAlias = Header | Body | Position | ContentHash
Events: TypeAlias = type | Mapping[str, type | None]


class Plain(msgspec.Struct, frozen=True):
    """How plain messages of a topic become events; given to `Service.accept`. What is declared must be there.

    *events*: an event class, or classes by kind, where *type* says in which header or field the kind stands; None
    for a kind that is skipped. *id*: what tells a repeat, or several, of which the first that is there counts; unique
    within *source*, over all kinds. *source*: a text, or where it stands; the topic unless given. *key*: the broker's
    key, or where it has none what the event declares, unless given. *time*: RFC 3339, or seconds or milliseconds
    since 1970; when the broker took the message, unless given. *version* of the data: the class's own, unless given.
    *data*: the object inside the body that is the event; the whole body unless given. *content_type* overrules what
    the message says.

    Raises:
        ConfigurationError: names every problem at once.
    """

    events: Events
    id: Identity | Sequence[Identity]
    type: Where | None = None
    source: str | Where = ""
    key: Where | None = None
    time: Where | None = None
    version: int | Where | None = None
    data: Body | None = None
    content_type: str = ""

    def __post_init__(self) -> None:
        plain_topic(self)


class PlainTopic(msgspec.Struct, frozen=True):
    """A `Plain` whose classes are looked up: its topic, its events by kind (``""``: the only one), its ids."""

    plain: Plain
    topic: str
    kinds: Mapping[str, EventType | None]
    ids: Sequence[Identity]

    @property
    def needs_positions(self) -> bool:
        """Whether it stands on positions that last."""
        return any(isinstance(one, Position) for one in self.ids)


class Mapped(msgspec.Struct, frozen=True):
    """A plain message that was read: as an *event* with a whole envelope (None: its kind is skipped), and as it
    travels on: its *original* headers and bytes under the event's id, source and key."""

    original: Message
    event: Message | None


class Unmapped(msgspec.Struct, frozen=True):
    """A plain message of which no event can be made; *original* has the id, source and key that could be told."""

    original: Message
    reason: Reason
    detail: str


def plain_topic(plain: Plain) -> PlainTopic:
    """Return *plain* with its classes looked up.

    Raises:
        ConfigurationError: not events, events of several topics, or kinds without a place where they stand.
    """
    problems: list[str] = []
    kinds: dict[str, EventType | None]
    if isinstance(plain.events, Mapping):
        kinds = {kind: None if cls is None else definition_of(cls) for kind, cls in plain.events.items()}
        if plain.type is None:
            problems.append("events by kind need type=, the header or the field in which the kind stands")
    else:
        kinds = {"": definition_of(plain.events)}
        if plain.type is not None:
            problems.append("type= needs events by kind: {'placed': OrderPlaced}")
    events = [event for event in kinds.values() if event is not None]
    problems += [f"{event.type} is a domain event: it goes through no broker" for event in events if not event.topic]
    topics = {event.topic for event in events}
    if len(topics) > 1:
        problems.append(f"its events are of several topics: {', '.join(sorted(topics))}; make a Plain for each")
    elif not topics:
        problems.append("it names no event")
    ids: Sequence[Identity] = plain.id if isinstance(plain.id, Sequence) else (plain.id,)
    if not ids or {type(one) for one in ids} - _IDENTITIES:
        problems.append("id= is Header(…), Body(…), Position(), ContentHash(), or several of them")
    elif any(isinstance(one, (Position, ContentHash)) for one in ids[:-1]):
        problems.append("Position() and ContentHash() are always there, so they can only come last")
    if isinstance(plain.version, int) and plain.version < 1:
        problems.append("version= is a number from 1")
    if problems:
        raise ConfigurationError(
            f"Plain({', '.join(kinds)}): {'; '.join(problems)}", hint="see docs/how-to/foreign-producers.md"
        )
    return PlainTopic(plain, topics.pop(), kinds, tuple(ids))


def read_plain(topic: PlainTopic, delivery: Delivery) -> Mapped | Unmapped:
    """Return what a plain message is. Whatever its bytes, nothing is raised."""
    reading = _Reading(topic, delivery)
    try:
        kind = reading.kind()
        if kind not in topic.kinds:
            detail = f"its kind is {kind[:40]!r}, and the service accepts {', '.join(topic.kinds)}"
            return Unmapped(reading.named_if_told(), Reason.UNKNOWN_TYPE, detail)
        event = topic.kinds[kind]
        return Mapped(delivery.message, None) if event is None else reading.mapped(event)
    except DecodeError as error:
        return Unmapped(reading.named_if_told(), Reason.UNDECODABLE, error.message)


class _Reading:
    """One plain message, and what its topic's declaration makes of it."""

    def __init__(self, topic: PlainTopic, delivery: Delivery) -> None:
        self._plain = topic.plain
        self._topic = topic
        self._delivery = delivery
        self._message = delivery.message
        self._found = _Found(delivery.message.headers, delivery.message.body)
        # What comes back from its group's own channel has the identity that it was given at first.
        self._back = isinstance(delivery.message.to, InboxChannel)
        self._is_named = self._back and bool(delivery.message.id)

    def mapped(self, event: EventType) -> Mapped:
        """Return the message as an *event*."""
        plain, original, time = self._plain, self._named(), self._time()
        if time is not None and plain.time is None:  # the broker's, which is another one when it comes back
            original = msgspec.structs.replace(original, headers={**original.headers, "ce-time": time})
        headers = {
            **original.headers,
            "ce-specversion": "1.0",
            "ce-id": original.id,
            "ce-source": original.source,
            "ce-type": event.type,
            "ce-schemaversion": self._version(event),
            "content-type": plain.content_type or original.headers.get("content-type", "application/json"),
        }
        if time is not None:
            headers["ce-time"] = time
        if original.key is not None:
            headers["ce-partitionkey"] = original.key
        body = original.body if plain.data is None else self._data(plain.data)
        return Mapped(original, msgspec.structs.replace(original, headers=headers, body=body))

    def named_if_told(self) -> Message:
        """Return the message under its id, source and key, as far as they can be told."""
        named = self._message
        if self._is_named:
            return named
        for name, tell in (("id", self._id), ("source", self._source), ("key", self._key)):
            with suppress(DecodeError):
                named = msgspec.structs.replace(named, **{name: tell()})
        return named

    def kind(self) -> str:
        """Return what says which event it is; nothing where there is only one."""
        return "" if self._plain.type is None else self._required(self._plain.type, "kind")

    def _named(self) -> Message:
        if self._is_named:
            return self._message
        return msgspec.structs.replace(self._message, id=self._id(), source=self._source(), key=self._key())

    def _id(self) -> str:
        delivery, message = self._delivery, self._message
        for one in self._topic.ids:
            match one:
                case Position():
                    return f"{delivery.lane}{'/inbox' if self._back else ''}/{delivery.position}"
                case ContentHash():
                    key = (message.key or "").encode("utf-8", "surrogatepass")
                    return blake2b(key + b"\0" + message.body, digest_size=16).hexdigest()
                case _:
                    text = self._found.text(one)
                    if text:
                        return _checked(text, one, what="id")
        raise DecodeError(f"it has no id: {' and '.join(map(str, self._topic.ids))} is not there")

    def _source(self) -> str:
        source = self._plain.source
        return (source or self._topic.topic) if isinstance(source, str) else self._required(source, "source")

    def _key(self) -> str | None:
        return self._message.key if self._plain.key is None else self._required(self._plain.key, "key")

    def _version(self, event: EventType) -> str:
        version = self._plain.version
        if version is None or isinstance(version, int):
            return str(version or event.version)
        return self._required(version, "version")

    def _time(self) -> str | None:
        where = self._plain.time
        if where is None:
            text = self._message.headers.get("ce-time")
            at = self._delivery.stored_at if text is None else _instant(text, Header("ce-time"))
        else:
            at = _instant(self._required(where, "time"), where)
        return None if at is None else moment(at).isoformat().replace("+00:00", "Z")

    def _data(self, where: Body) -> bytes:
        raw = self._found.raw(where)
        if raw is None:
            raise DecodeError(f"it has no data: {where} is not there")
        return bytes(raw)

    def _required(self, where: Where, what: str) -> str:
        text = self._found.text(where)
        if not text:
            raise DecodeError(f"it has no {what}: {where} is not there")
        return _checked(text, where, what=what)


def _checked(text: str, where: Where, *, what: str) -> str:
    if len(text) > _TEXT_MAX or has_control(text):
        raise DecodeError(f"its {what} cannot travel: {where} has control characters, or more than {_TEXT_MAX}")
    return text


def _instant(text: str, where: Where) -> int:
    """Return a time in microseconds since 1970."""
    try:
        if _NUMBER.match(text):
            seconds = float(text)
            seconds = seconds / 1_000 if seconds >= _MILLISECONDS_FROM else seconds
        else:
            when = datetime.fromisoformat(text)
            seconds = -1.0 if when.tzinfo is None else when.timestamp()
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds * 1e6 < _AT_MAX:
        what = "neither RFC 3339 with a time zone nor a number since 1970"
        raise DecodeError(f"its time is {what}: {where} is {text[:40]!r}")
    return round(seconds * 1e6)


class _Found:
    """Headers and fields of one message. The body is read when something in it is asked for, each level once."""

    def __init__(self, headers: Mapping[str, str], body: bytes) -> None:
        self._headers = headers
        self._body = body
        self._levels: dict[str, dict[str, msgspec.Raw]] = {}

    def text(self, where: Where) -> str | None:
        """Return a text, or a number as text; None: it is not there.

        Raises:
            DecodeError: it is something else, or the body is no JSON object.
        """
        if isinstance(where, Header):
            return self._headers.get(where.name)
        raw = self.raw(where)
        if raw is None:
            return None
        try:
            value = msgspec.json.decode(raw, type=str | int | float)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise DecodeError(f"{where} is neither a text nor a number") from None
        return value if isinstance(value, str) else bytes(raw).decode()

    def raw(self, where: Body) -> msgspec.Raw | None:
        """Return a field as it stands there; null is as if it were not there."""
        parent, _, name = where.path.rpartition(".")
        level = self._level(parent)
        raw = None if level is None else level.get(name)
        return None if raw is None or bytes(raw) == b"null" else raw

    def _level(self, path: str) -> dict[str, msgspec.Raw] | None:
        if path not in self._levels:
            raw = msgspec.Raw(self._body) if not path else self.raw(Body(path))
            if raw is None:
                return None
            try:
                self._levels[path] = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            except (msgspec.MsgspecError, ValueError, RecursionError):
                what = str(Body(path)) if path else "the body"
                raise DecodeError(f"{what} is no JSON object") from None
        return self._levels[path]
