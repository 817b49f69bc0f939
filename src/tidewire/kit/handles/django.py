"""Django's database connections: ``django.db.connection`` and ``django.db.connections["orders"]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidewire.kit.handles.placeholders import spelled
from tidewire.kit.handles.seam import SyncSql, not_begun

__all__ = ["DjangoConnection"]


class DjangoConnection:
    """See `tidewire.kit.handles.seam.SyncHandle`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def dialect(self) -> str:
        """What Django calls the vendor of the database."""
        return str(self._connection.vendor)

    @property
    def connection(self) -> object:
        """The driver's connection."""
        return self._connection.connection

    def begun(self) -> SyncSql:
        """Refuse a connection outside of ``transaction.atomic()`` that commits each statement."""
        if not self._connection.in_atomic_block and self._connection.get_autocommit():
            raise not_begun(
                f"Django connection {self._connection.alias!r}", "publish inside `with transaction.atomic():`"
            )
        return self

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """Run it through Django, which logs it like any other and refuses it in a block that is to be rolled back."""
        with self._connection.cursor() as cursor:
            cursor.execute(*spelled(sql, parameters, style="format"))
            return cursor.fetchall() if cursor.description is not None else ()
