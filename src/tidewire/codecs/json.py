"""JSON bodies: msgspec for dataclasses, attrs and Structs, pydantic's own core for pydantic classes.

What JSON cannot carry faithfully is refused on both ways with its path: NaN and Infinity (both libraries would write
``null``), times without a zone, integers beyond 64 bits, NUL in texts. Of duplicate keys the last one counts.
Unknown fields are ignored, so that a newer producer does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from tidewire.codecs.faithful import checker_for, first_unfaithful
from tidewire.errors import ConfigurationError, DecodeError

__all__ = ["json_codec"]

_DEPTH_MAX = 64
# Possessive, and a text without an end reaches to the end: linear whatever the bytes.
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|([\[{])|([\]}])', re.DOTALL)
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*+\\u0000")
_BACKSLASH, _ESCAPED_NUL = ord("\\"), b"\\u0000"
_PATH = re.compile(r" - at `(.*)`\Z")
_CONTENT_TYPE = "application/json"


class JsonCodec:
    """One event type as JSON. Made by `json_codec`."""

    __slots__ = ("_check", "_decode", "_encode", "_name", "_open")

    def __init__(
        self,
        name: str,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        check: Callable[[Any], str] | None,
        is_open: bool,
    ) -> None:
        self._name = name
        self._encode = encode
        self._decode = decode
        self._check = check
        self._open = is_open

    @property
    def content_type(self) -> str:
        """``application/json``."""
        return _CONTENT_TYPE

    def encode(self, event: Any) -> bytes:
        """Return *event* as JSON.

        Raises:
            ConfigurationError: a value cannot travel; names the path.
        """
        if self._check is not None:
            problem = self._check(event)
            if problem:
                raise ConfigurationError(f"{self._name} cannot travel: {problem}")
        try:
            body = self._encode(event)
        except RecursionError:
            raise ConfigurationError(f"{self._name} cannot travel: it is nested too deeply or holds itself") from None
        except Exception as error:
            raise ConfigurationError(f"{self._name} cannot travel: {error}") from error
        if _BACKSLASH in body and _has_nul(body):
            raise ConfigurationError(f"{self._name} cannot travel: a text holds the character NUL")
        if self._open and _too_deep(body):
            raise ConfigurationError(f"{self._name} cannot travel: nested deeper than {_DEPTH_MAX}")
        return body

    def decode(self, body: bytes) -> Any:
        """Return the event in *body*; pydantic's validators run.

        Raises:
            DecodeError: and nothing else, whatever the bytes.
        """
        if _BACKSLASH in body and _has_nul(body):
            raise DecodeError("a text holds the character NUL")
        if self._open and _too_deep(body):
            raise DecodeError(f"nested deeper than {_DEPTH_MAX}")
        try:
            event = self._decode(body)
            problem = self._check(event) if self._check is not None else ""
        except (RecursionError, MemoryError) as error:
            raise DecodeError(f"too deep or too large: {type(error).__name__}") from None
        except Exception as error:
            text = str(error)
            path = _PATH.search(text)
            raise DecodeError(text, path=path.group(1) if path else "") from None
        if problem:
            raise DecodeError(problem, path=problem.partition(" ")[0])
        return event


def json_codec(cls: type) -> JsonCodec:
    """Return the codec of an event class.

    Raises:
        ConfigurationError: a field has a type that JSON cannot carry; names it.
    """
    if hasattr(cls, "__pydantic_validator__"):
        return _pydantic_codec(cls)
    try:
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(cls)
        check, is_open = checker_for(msgspec.inspect.type_info(cls))
    except (TypeError, NameError, msgspec.MsgspecError) as error:
        raise ConfigurationError(
            f"{cls.__qualname__} has a field that JSON cannot carry: {error}",
            hint="use texts, numbers, Decimal, datetime, UUID, enums, and lists, dicts or classes of these",
        ) from error
    return JsonCodec(cls.__qualname__, msgspec.json.Encoder().encode, decoder.decode, check, is_open)


def _pydantic_codec(cls: Any) -> JsonCodec:
    config: Any = getattr(cls, "model_config", None) or getattr(cls, "__pydantic_config__", None) or {}
    if "bytes" in _core_types(cls.__pydantic_core_schema__) and (
        config.get("ser_json_bytes") != "base64" or config.get("val_json_bytes") != "base64"
    ):
        raise ConfigurationError(
            f"{cls.__qualname__} has a field of bytes, which pydantic writes as UTF-8 text or not at all",
            hint='set ser_json_bytes="base64" and val_json_bytes="base64" in its model_config',
        )
    return JsonCodec(
        cls.__qualname__,
        cls.__pydantic_serializer__.to_json,
        cls.__pydantic_validator__.validate_json,
        first_unfaithful,
        True,
    )


def _core_types(schema: Any) -> set[str]:
    """Return every ``type`` in a pydantic core schema."""
    found: set[str] = set()
    todo: list[Any] = [schema]
    seen: set[int] = set()
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            fields = cast("dict[str, Any]", node)
            if isinstance(fields.get("type"), str):
                found.add(fields["type"])
            todo.extend(fields.values())
        elif isinstance(node, (list, tuple)):
            todo.extend(cast("Sequence[Any]", node))
    return found


def _has_nul(body: bytes) -> bool:
    """Whether a text in *body* holds the character NUL; looks closely only where there is reason to."""
    return _ESCAPED_NUL in body and _NUL.search(body) is not None


def _too_deep(body: bytes) -> bool:
    """Whether brackets nest deeper than the limit; counts exactly only where there are enough of them."""
    if body.count(b"[") + body.count(b"{") <= _DEPTH_MAX:
        return False
    depth = 0
    for match in _BRACKETS.finditer(body):
        if match.group(1):
            depth += 1
            if depth > _DEPTH_MAX:
                return True
        elif match.group(2):
            depth -= 1
    return False
