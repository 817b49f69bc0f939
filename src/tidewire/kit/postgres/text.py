"""Texts as PostgreSQL can hold them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["array_of", "given", "kept"]

_ESCAPE = "\uf8ff"


def kept(text: str) -> str:
    """Return *text* as a PostgreSQL text can hold it: NUL, which it cannot, is written with a private character.

    No two texts are kept alike; `given` is the way back.
    """
    if "\0" not in text and _ESCAPE not in text:
        return text
    return text.replace(_ESCAPE, f"{_ESCAPE}1").replace("\0", f"{_ESCAPE}0")


def given(text: str) -> str:
    """Return the text that `kept` made *text* of."""
    if _ESCAPE not in text:
        return text
    return text.replace(f"{_ESCAPE}0", "\0").replace(f"{_ESCAPE}1", _ESCAPE)


def array_of(values: Iterable[str | bytes | int | None]) -> str:
    """Return the literal of an array, whose type the statement says (``$1::text[]``)."""
    return "{" + ",".join([_element(value) for value in values]) + "}"


def _element(value: str | bytes | int | None) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    return "NULL" if value is None else str(value)
