"""What is outside of the service's database in a crash test: a fake bank, that notes what it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from payments.bank import clients
from tidewire.testing.simulation import effect


class FakeBank:
    """A bank that keeps what it has done by key, as real ones do."""

    def __init__(self) -> None:
        self.receipts: dict[str, str] = {}
        self.taken: list[int] = []

    async def take(self, cents: int, *, idempotency_key: str = "") -> str:
        """Take money, unless this key has come before."""
        await asyncio.sleep(0)  # the request is on its way: the service may die here
        key = idempotency_key or f"call {len(self.taken) + 1}"
        if key not in self.receipts:
            self.receipts[key] = f"receipt {len(self.taken) + 1}"
            self.taken.append(cents)
            effect("took", cents)
        await asyncio.sleep(0)  # and so is the answer
        return self.receipts[key]


def world(folder: Path) -> Callable[[], object]:
    """Put the fake bank in its place, and return what looks at it in the end."""
    bank = clients.bank = FakeBank()
    return lambda: {"account": bank.taken}
