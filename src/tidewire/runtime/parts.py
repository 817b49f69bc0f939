"""Where time, chance, codecs and ears come from: replaced together by tests and simulations."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tidewire.chance import Ids, Jitter, RandomJitter, UUID7Ids
from tidewire.clock import SystemClock
from tidewire.codecs.json import json_codec
from tidewire.protocols import Clock, Codec, Observer

__all__ = ["Parts", "with_remembered_codecs"]


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What every piece of the runtime needs besides its adapters."""

    clock: Clock = msgspec.field(default_factory=SystemClock)
    ids: Ids = msgspec.field(default_factory=UUID7Ids)
    jitter: Jitter = msgspec.field(default_factory=RandomJitter)
    codec_for: Callable[[type], Codec] = json_codec
    observer: Observer | None = None


def with_remembered_codecs(parts: Parts) -> Parts:
    """Return *parts* with a ``codec_for`` that makes each codec once."""
    codecs: dict[type, Codec] = {}

    def codec(cls: type) -> Codec:
        found = codecs.get(cls)
        if found is None:
            found = codecs[cls] = parts.codec_for(cls)
        return found

    return msgspec.structs.replace(parts, codec_for=codec)
