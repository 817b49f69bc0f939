"""Rows of the user's queries: by index and by name."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tidewire.kit.postgres.wire import Answers

__all__ = ["Row", "rows_of"]


class Row(tuple[Any, ...]):
    """A row: ``row[0]``, ``row["total"]``, ``dict(row.items())``. Of two columns of one name the first is meant."""

    __slots__ = ()
    columns: tuple[str, ...] = ()

    def __getitem__(self, where: Any) -> Any:
        """Return a column by its index or its name.

        Raises:
            KeyError, IndexError: there is no such column.
        """
        if isinstance(where, str):
            try:
                where = self.columns.index(where)
            except ValueError:
                raise KeyError(where) from None
        return super().__getitem__(where)

    def keys(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return self.columns

    def items(self) -> list[tuple[str, Any]]:
        """Return the columns with their names."""
        return list(zip(self.columns, self, strict=True))


@lru_cache(maxsize=256)
def _kind(columns: tuple[str, ...]) -> type[Row]:
    return type("Row", (Row,), {"__slots__": (), "columns": columns})


def rows_of(answers: Answers) -> list[Row]:
    """Return the rows of the last statement."""
    result = answers.results[-1]
    columns = tuple((result.fname(index) or b"").decode() for index in range(result.nfields))
    kind = _kind(columns)
    return [kind(row) for row in answers.rows()]
