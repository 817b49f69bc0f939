"""What every case of the codec suite stands on: codecs made from event classes, and two demands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar
from unittest import SkipTest

from tidewire.errors import ConfigurationError, DecodeError
from tidewire.protocols import Codec
from tidewire.testing.codecs.events import Everything

__all__ = ["Anything", "Site", "event_or_decode_error", "properties", "same_or_refused"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One format: *codec* makes the codec of an event class, as it is done once for each type.

    *bombs* are bodies that are known to hurt decoders of this format (nesting, lengths, digits). *elsewhere* names
    *codec* for another process, as ``module:function``. *recursive*: a class may hold itself. *evolves*: what a
    newer or an older version of a class wrote is read without being told its schema.
    """

    codec: Callable[[type], Codec]
    bombs: Sequence[bytes]
    elsewhere: str
    recursive: bool = True
    evolves: bool = True

    def need(self, **capabilities: bool) -> None:
        """Skip unless each named property of the site is true; the text names the one that is not."""
        for name, holds in capabilities.items():
            if not holds:
                raise SkipTest(f"capability {name} is False")

    def decode(self, kind: type[T], body: bytes) -> T:
        """Decode *body* with a new codec of *kind*, and demand an event of it."""
        event: object = self.codec(kind).decode(body)
        assert type(event) is kind, f"{type(event).__name__} is not {kind.__name__}"
        return event

    def round_trip(self, event: T) -> T:
        """Return what comes out where *event* goes in."""
        return self.decode(type(event), self.codec(type(event)).encode(event))


class Anything(Protocol):
    """Calls a demand with many values, the same ones each time."""

    def any_event(self, demand: Callable[[Everything], None]) -> None:
        """With events."""
        ...

    def any_bytes(self, demand: Callable[[bytes], None]) -> None:
        """With bytes."""
        ...

    def any_mutation(self, body: bytes, demand: Callable[[bytes], None]) -> None:
        """With *body* after a piece of it was replaced."""
        ...


class _NothingElse:
    """Lets a `DecodeError` pass; whatever else is raised fails the case, with the bytes that did it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """Judge what was raised."""
        if kind is None or issubclass(kind, (AssertionError, KeyboardInterrupt)):
            return False
        assert issubclass(kind, DecodeError), f"{self._body[:60]!r} raised {kind.__module__}.{kind.__name__}, not ours"
        assert str(error), "it says what is wrong"
        return True


def event_or_decode_error(codec: Codec, body: bytes, *, kind: type) -> None:
    """Demand that *body* is an event of *kind* or a `DecodeError`, and nothing else (R13)."""
    with _NothingElse(body):
        event: object = codec.decode(body)
        assert type(event) is kind, f"{body[:60]!r} became a {type(event).__name__}"


def same_or_refused(site: Site, event: object, *, path: str = "") -> bool:
    """Demand that *event* comes back equal, or is refused with its *path*; return whether it came back."""
    codec = site.codec(type(event))
    body, refusal = b"", ""
    try:
        body = codec.encode(event)
    except ConfigurationError as error:
        refusal = str(error)
    if refusal:
        assert path in refusal, f"the refusal does not name {path}: {refusal}"
        return False
    back: object = codec.decode(body)
    assert event == back or repr(event) == repr(back), f"{event} came back as {back}"  # NaN equals nothing
    return True


def properties() -> Anything:
    """Return the cases that try any value; skips where hypothesis is not installed."""
    try:
        from tidewire.testing.codecs import anything
    except ImportError as error:
        raise SkipTest("not proven: needs the package hypothesis") from error
    return anything
