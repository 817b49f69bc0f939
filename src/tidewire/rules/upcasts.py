"""Old versions of an event, read by new code: small pure functions from one version's fields to the next's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tidewire.errors import ConfigurationError, DecodeError
from tidewire.protocols import Codec
from tidewire.rules.events import EventType, definition_of

__all__ = ["Upcast", "decoders", "upcast"]

Fields = dict[str, Any]


class Upcast(msgspec.Struct, frozen=True):
    """A step from *from_version* to the next one, for events of one type."""

    type: str
    from_version: int
    function: Callable[[Fields], Fields]


def upcast(cls: type, *, from_version: int) -> Callable[[Callable[[Fields], Fields]], Upcast]:
    """Declare how the fields of version *from_version* of an event become those of the next version.

    The function takes and returns a dict of plain JSON values; it must be pure. Give the result to
    `Service.upcast`.

    Raises:
        ConfigurationError: *cls* is not an event, or *from_version* is not below its version.
    """
    definition = definition_of(cls)
    if not 1 <= from_version < definition.version:
        raise ConfigurationError(
            f"@upcast of {definition.type} from version {from_version}: {cls.__qualname__} is version "
            f"{definition.version}, so a step starts at 1 to {definition.version - 1}"
        )

    def decorate(function: Callable[[Fields], Fields]) -> Upcast:
        return Upcast(definition.type, from_version, function)

    return decorate


def decoders(definition: EventType, codec: Codec, upcasts: Sequence[Upcast]) -> dict[str, Callable[[bytes], Any]]:
    """Return a decoder for every version of *definition* that can be read, by version as headers spell it."""
    steps = {step.from_version: step.function for step in upcasts if step.type == definition.type}
    found: dict[str, Callable[[bytes], Any]] = {str(definition.version): codec.decode}
    chain: list[Callable[[Fields], Fields]] = []
    for version in range(definition.version - 1, 0, -1):
        if version not in steps:
            break
        chain = [steps[version], *chain]
        found[str(version)] = _through(tuple(chain), codec, definition)
    return found


def _through(
    chain: Sequence[Callable[[Fields], Fields]], codec: Codec, definition: EventType
) -> Callable[[bytes], Any]:
    def decode(body: bytes) -> Any:
        try:
            fields = msgspec.json.decode(body, type=dict[str, Any])
            for step in chain:
                fields = step(fields)
            current = msgspec.json.encode(fields)
        except Exception as error:
            raise DecodeError(
                f"{definition.type}: cannot be brought to version {definition.version}: {error}"
            ) from error
        return codec.decode(current)

    return decode
