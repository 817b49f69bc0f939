"""Real transports that answer late, cut, or no, for tests of the relay; *handed* is what each call was given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from tidewire.errors import TransportUnavailable
from tidewire.model import Message, Receipt


class Watched:
    """A real transport; *handed* are the calls, *most* how many messages of one key were on their way at once."""

    def __init__(self, transport: Any) -> None:
        self.inner = transport
        self.handed: list[list[str]] = []
        self.most = 0
        self._under_way: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        keys = {message.key for message in messages if message.key is not None}
        self.handed.append([message.id for message in messages])
        self._under_way += keys
        self.most = max([self.most, *(self._under_way.count(key) for key in keys)])
        try:
            return await self.answer(messages)
        finally:
            for key in keys:
                self._under_way.remove(key)

    async def answer(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        receipts: Sequence[Receipt] = await self.inner.publish(messages)
        return receipts


class Late(Watched):
    """Answers nothing about a message of *key* before *released* is set."""

    def __init__(self, transport: Any, key: str) -> None:
        super().__init__(transport)
        self.released = asyncio.Event()
        self._key = key

    async def answer(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        receipts = await super().answer(messages)
        if any(message.key == self._key for message in messages):
            await self.released.wait()
        return receipts


class Refusing(Watched):
    """Refuses what *refused* says; later ones of the key in the call are refused with it, as the seam demands."""

    def __init__(self, transport: Any, refused: Callable[[Message], bool]) -> None:
        super().__init__(transport)
        self.refused = refused

    async def answer(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        failed: set[str | None] = set()
        receipts: list[Receipt | None] = []
        for message in messages:
            if message.key is not None and message.key in failed:
                receipts.append(Receipt(message.id, "rejected", "after_failure"))
            elif self.refused(message):
                failed.add(message.key)
                receipts.append(Receipt(message.id, "rejected", "too_large", "never"))
            else:
                receipts.append(None)
        wanted = [message for message, refusal in zip(messages, receipts, strict=True) if refusal is None]
        stored = iter(await super().answer(wanted))
        return [refusal or next(stored) for refusal in receipts]


class Away(Watched):
    """Cannot be reached."""

    async def answer(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        raise TransportUnavailable("it is away")


class CutOnce(Watched):
    """Of its first call, *stored* messages arrive and *heard* receipts come back; the rest is unknown, or, with
    *raising*, not heard of at all."""

    def __init__(self, transport: Any, *, stored: int, heard: int, raising: bool) -> None:
        super().__init__(transport)
        self._stored, self._heard, self._raising = stored, heard, raising
        self._cut = False

    async def answer(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        if self._cut:
            return await super().answer(messages)
        self._cut = True
        receipts = list(await super().answer(messages[: self._stored]))[: self._heard]
        if self._raising:
            raise TransportUnavailable("cut")
        return [*receipts, *(Receipt(message.id, "unknown", "", "cut") for message in messages[len(receipts) :])]
