"""Our statements count their parameters (``$1``); each library has a way of its own to write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

__all__ = ["numbered", "spelled"]

_PARAMETER = re.compile(r"\$(\d+)")
# What is quoted or a comment is not looked into.
_QUOTED_OR_PARAMETER = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|\$(\d+)""", re.DOTALL
)


@lru_cache(maxsize=1_024)
def numbered(sql: str) -> str:
    """Return *sql* with ``?1`` for ``$1``, as SQLite counts them; quoted texts and comments stay as they are."""
    return _QUOTED_OR_PARAMETER.sub(lambda found: f"?{found[1]}" if found[1] else found[0], sql)


def spelled(sql: str, parameters: Sequence[Any], *, style: str) -> tuple[str, tuple[Any, ...] | dict[str, Any]]:
    """Return the statement and its parameters as a driver of PEP 249's paramstyle *style* takes them.

    Raises:
        ValueError: a style that none of the known drivers has.
    """
    if style == "numeric_dollar":
        return sql, tuple(parameters)
    if style == "qmark":
        return numbered(sql), tuple(parameters)
    if style == "pyformat":
        return _named(sql), {f"p{number}": value for number, value in enumerate(parameters, 1)}
    if style == "format":
        text, order = _in_order(sql)
        return text, tuple(parameters[number - 1] for number in order)
    raise ValueError(f"a driver that writes its parameters in the style {style!r} is not known")


@lru_cache(maxsize=256)
def _named(sql: str) -> str:
    return _PARAMETER.sub(r"%(p\1)s", sql.replace("%", "%%"))


@lru_cache(maxsize=256)
def _in_order(sql: str) -> tuple[str, tuple[int, ...]]:
    order = tuple(int(number) for number in _PARAMETER.findall(sql))
    return _PARAMETER.sub("%s", sql.replace("%", "%%")), order
