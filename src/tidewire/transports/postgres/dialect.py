"""The log's SQL, which is written for SQLite, as PostgreSQL reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import count

from tidewire.transports.postgres.schema import TABLES

__all__ = ["translator"]

_TABLE = re.compile(rf"\b(FROM|JOIN|INTO|UPDATE)\s+({'|'.join(TABLES)})\b")
_PLACEHOLDER = re.compile(r"\?(\d*)")
_GREATEST = re.compile(r"\bmax\((?=[^()]*,)")
_WORDS = (("INDEXED BY log_once ", ""), ("instr(", "strpos("), ("CROSS JOIN", "JOIN"))
_KEPT = 1_000


def translator(named: Callable[[str], str]) -> Callable[[str], bytes]:
    """Return a function from the log's SQL to PostgreSQL's, where *named* gives the qualified name of a table."""

    @lru_cache(_KEPT)
    def translated(sql: str) -> bytes:
        for theirs, ours in _WORDS:
            sql = sql.replace(theirs, ours)
        numbers = count(1)
        sql = _PLACEHOLDER.sub(lambda found: f"${found[1] or next(numbers)}", sql)
        sql = _GREATEST.sub("greatest(", sql)
        return _TABLE.sub(lambda found: f"{found[1]} {named(found[2])}", sql).encode()

    return translated
