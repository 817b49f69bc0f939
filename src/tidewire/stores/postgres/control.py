"""Which statements are not for handlers: what begins, ends or leaves the unit's transaction, or outlives it."""

from __future__ import annotations

import re

from tidewire.errors import TransactionControl

__all__ = ["check_statement"]

_SPACE = re.compile(r"(?:[\s\ufeff;]|--[^\n]*(?:\n|\Z))+")
_COMMENT = re.compile(r"/\*|\*/")
_WORD = re.compile(r"[A-Za-z_]+")
_CONTROL = frozenset(
    {"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE", "PREPARE", "EXECUTE"}
    | {"DEALLOCATE", "DISCARD", "RESET", "LISTEN", "UNLISTEN", "COPY", "VACUUM"}
)
_CHECKED_MAX = 1_024
_checked: dict[str, str] = {}


def check_statement(sql: str) -> None:
    """Refuse statements that would begin, end or leave the unit's transaction, or change the session behind it.

    ``SET LOCAL``, ``SET TRANSACTION`` and ``SET CONSTRAINTS`` end with the unit and are let through.

    Raises:
        TransactionControl: names the statement's first word.
    """
    refused = _checked.get(sql)
    if refused is None:
        refused = _refused(sql)
        if len(_checked) >= _CHECKED_MAX:
            _checked.clear()
        _checked[sql] = refused
    if not refused:
        return
    if refused == "COPY":
        raise TransactionControl(
            "COPY is not for context.tx: statements travel in batches", hint="INSERT … SELECT FROM unnest($1::text[])"
        )
    if refused == "SET":
        raise TransactionControl(
            "SET would outlive the unit on its connection", hint="SET LOCAL holds until the unit ends"
        )
    raise TransactionControl(
        f"{refused} is not for handlers: the unit begins, commits and rolls back",
        hint="raise an error to roll back, return to commit; `async with context.tx.savepoint()` undoes a part",
    )


def _refused(sql: str) -> str:
    first, rest = _word(sql, 0)
    if first == "SET":
        second, _ = _word(sql, rest)
        return "" if second in ("LOCAL", "TRANSACTION", "CONSTRAINTS") else "SET"
    return first if first in _CONTROL else ""


def _word(sql: str, at: int) -> tuple[str, int]:
    """Return the next word in capitals, after space and comments (which nest), and where it ends."""
    while at < len(sql):
        if space := _SPACE.match(sql, at):
            at = space.end()
        elif sql.startswith("/*", at):
            at = _after_comment(sql, at)
        else:
            break
    found = _WORD.match(sql, at)
    return (found.group().upper(), found.end()) if found else ("", at)


def _after_comment(sql: str, at: int) -> int:
    depth = 0
    for mark in _COMMENT.finditer(sql, at):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(sql)
