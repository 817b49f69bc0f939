"""A process that commits units to the store under test until it is killed. Its lines say what is durable."""

from __future__ import annotations

import asyncio
import os
import pkgutil
from collections.abc import Awaitable, Sequence

from tidewire.clock import SystemClock
from tidewire.testing.stores.bench import Site, mark_of, message

__all__ = ["serve"]

_BATCH = 7


async def _write(site: Site, prefix: str, number: int) -> None:
    """Commit units named ``prefix-0``, ``prefix-1`` …, several on their way at a time; *number* 0 is for ever."""
    async with site.open(SystemClock()) as store:
        count = 0
        while number == 0 or count < number:
            sealed: list[tuple[str, Awaitable[None]]] = []
            for _ in range(min(_BATCH, number - count) if number else _BATCH):
                name = f"{prefix}-{count}"
                unit = store.unit()
                await store.inbox.mark(unit, mark_of(name), b"digest")
                await site.rows.insert(unit, name)
                await store.outbox.put(unit, [message(name)])
                sealed.append((name, await unit.seal()))
                count += 1
            for name, durable in sealed:
                await durable
                os.write(1, f"{name}\n".encode())


def serve(prefix: str, number: int, *, elsewhere: Sequence[str]) -> None:
    """Be the writer: get the site from ``module:function`` and its arguments, and commit."""
    site: Site = pkgutil.resolve_name(elsewhere[0])(*elsewhere[1:])
    asyncio.run(_write(site, prefix, number))
