"""The bank's interface, as the services know it. In production it goes over HTTP."""

from __future__ import annotations

from typing import Protocol


class Bank(Protocol):
    """What takes money."""

    async def take(self, cents: int, *, idempotency_key: str = "") -> str:
        """Take money, once for each key, or once for each call without one, and return a receipt."""
        ...


class HttpBank:
    """The real one."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def take(self, cents: int, *, idempotency_key: str = "") -> str:
        """Take money."""
        raise NotImplementedError("this example has no bank: the crash test puts a fake in its place")


class Clients:
    """Who is called: one place, so that a test can put something else there."""

    bank: Bank = HttpBank("https://bank.example")


clients = Clients()
