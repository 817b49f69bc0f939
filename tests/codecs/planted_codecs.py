"""Codecs that are broken on purpose, each in one way, over the sound one for JSON."""

from __future__ import annotations

import itertools
import json
import unicodedata
from datetime import UTC, datetime
from typing import Any

import msgspec
from codec_sites import json_site

from tidewire.codecs.json import json_codec
from tidewire.errors import ConfigurationError, DecodeError
from tidewire.testing.codecs import Site


class Planted:
    """A sound codec, of which one part may be replaced."""

    content_type = "application/json"

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.inner = json_codec(kind)

    def encode(self, event: Any) -> bytes:
        """Encode as one ought to."""
        return self.inner.encode(event)

    def decode(self, body: bytes) -> Any:
        """Decode as one ought to."""
        return self.inner.decode(body)

    @classmethod
    def site(cls) -> Site:
        """Return a site with codecs of this kind."""
        return json_site(cls, f"planted_codecs:{cls.__name__}")


class RaisesItsLibrarysErrors(Planted):
    """PB-59: the library's own errors get out."""

    def decode(self, body: bytes) -> Any:
        """Decode, and map nothing."""
        return msgspec.json.decode(body, type=self.kind)


class CatchesValueErrors(Planted):
    """PB-59, DEP-11: ``except ValueError`` around a decoder lets a RecursionError out."""

    def decode(self, body: bytes) -> Any:
        """Look through the body first, and catch what one expects."""
        try:
            json.loads(body)
        except ValueError as error:
            raise DecodeError(str(error)) from None
        return super().decode(body)


class WritesNull(Planted):
    """DEP-08: NaN and Infinity become null, which reads as nothing or as a default."""

    def encode(self, event: Any) -> bytes:
        """Encode whatever comes."""
        return msgspec.json.encode(event)

    def decode(self, body: bytes) -> Any:
        """Take null for a default."""
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            return super().decode(body)
        if isinstance(fields, dict):
            body = json.dumps({name: value for name, value in fields.items() if value is not None}).encode()
        return super().decode(body)


class TakesAmountsForFloats(Planted):
    """SC5: amounts pass through a float."""

    def decode(self, body: bytes) -> Any:
        """Round."""
        event = super().decode(body)
        if hasattr(event, "price"):
            object.__setattr__(event, "price", type(event.price)(str(float(event.price))))
        return event


class TakesLocalTimesForUtc(Planted):
    """DEP-03: a time without a zone is some other instant after its trip."""

    def encode(self, event: Any) -> bytes:
        """Put a zone on what has none."""
        when = getattr(event, "when", None)
        if isinstance(when, datetime) and when.tzinfo is None:
            event = msgspec.structs.replace(event) if isinstance(event, msgspec.Struct) else _with(event, when)
        return super().encode(event)


def _with(event: Any, when: datetime) -> Any:
    return type(event)(**{**vars(event), "when": when.replace(tzinfo=UTC)})


class DropsMicroseconds(Planted):
    """SC5: instants are kept to the second."""

    def decode(self, body: bytes) -> Any:
        """Cut."""
        event = super().decode(body)
        if hasattr(event, "when"):
            object.__setattr__(event, "when", event.when.replace(microsecond=0))
        return event


class ComposesLetters(Planted):
    """SC5: texts are normalised, so that two keys become one."""

    def decode(self, body: bytes) -> Any:
        """Compose."""
        event = super().decode(body)
        if isinstance(getattr(event, "text", None), str):
            object.__setattr__(event, "text", unicodedata.normalize("NFC", event.text))
        return event


class LeavesOutWhatIsEmpty(Planted):
    """A false value is not written, and reads as the default."""

    def encode(self, event: Any) -> bytes:
        """Drop what is false."""
        fields = json.loads(super().encode(event))
        return json.dumps({name: value for name, value in fields.items() if value or name == "order_id"}).encode()


class SaltsItsBodies(Planted):
    """IX-7: no two bodies of an event are equal."""

    salt = itertools.count()

    def encode(self, event: Any) -> bytes:
        """Add a number of its own."""
        return super().encode(event)[:-1] + b',"salt":%d}' % next(self.salt)


class OrdersByHash(Planted):
    """IX-7: the order of fields is that of a set, another one in each process."""

    def encode(self, event: Any) -> bytes:
        """Write the fields in the order of their hashes."""
        fields = json.loads(super().encode(event))
        return json.dumps({name: fields[name] for name in set(fields)}, separators=(",", ":")).encode()


class RemembersBodies(Planted):
    """Two events of one body are one object, which a handler may change."""

    def __init__(self, kind: type) -> None:
        super().__init__(kind)
        self.known: dict[bytes, Any] = {}

    def decode(self, body: bytes) -> Any:
        """Decode once."""
        if body not in self.known:
            self.known[body] = super().decode(body)
        return self.known[body]


class StumblesAfterAnError(Planted):
    """R13: a bad body leaves something behind that spoils the next good one."""

    rest = b""

    def decode(self, body: bytes) -> Any:
        """Decode what was left and what has come."""
        whole, self.rest = self.rest + body, body
        event = super().decode(whole)
        self.rest = b""
        return event


class TakesOtherClasses(Planted):
    """A body of another class becomes a mapping that no handler expects."""

    def decode(self, body: bytes) -> Any:
        """Return whatever is in there."""
        try:
            return super().decode(body)
        except DecodeError:
            try:
                return json.loads(body)
            except (ValueError, RecursionError):
                raise DecodeError("no JSON") from None


class RefusesUnknownFields(Planted):
    """DEP-10: a newer producer stops every older consumer."""

    def decode(self, body: bytes) -> Any:
        """Allow no field that the class does not have."""
        event = super().decode(body)
        unknown = set(json.loads(body)) - set(vars(event))
        if unknown:
            raise DecodeError(f"unknown: {sorted(unknown)}")
        return event


class MakesUpWhatIsMissing(Planted):
    """A required field that is not there is None."""

    def decode(self, body: bytes) -> Any:
        """Fill in."""
        try:
            return super().decode(body)
        except DecodeError as error:
            if "missing required" not in error.message:
                raise
            event = object.__new__(self.kind)
            names: Any = self.kind.__dataclass_fields__  # type: ignore[attr-defined]
            vars(event).update({**dict.fromkeys(names), **json.loads(body)})
            return event


class HidesThePlace(Planted):
    """An error that says no more than that there is one."""

    def decode(self, body: bytes) -> Any:
        """Say nothing."""
        try:
            return super().decode(body)
        except DecodeError:
            raise DecodeError("invalid body") from None


class AsksAtTheFirstEvent(Planted):
    """A class that cannot travel is found out in production."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    @property
    def inner(self) -> Any:  # type: ignore[override]
        """Made when it is needed."""
        try:
            return json_codec(self.kind)
        except ConfigurationError as error:
            raise RuntimeError("too late") from error
