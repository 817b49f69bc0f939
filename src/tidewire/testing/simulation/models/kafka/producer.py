"""How one client publishes: batches for partitions, an idempotent producer, and honest receipts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

import msgspec

from tidewire.model import Message, Receipt
from tidewire.testing.simulation.models.common import lane_of
from tidewire.testing.simulation.models.kafka.groups import Place
from tidewire.testing.simulation.models.kafka.logs import Draft
from tidewire.testing.simulation.models.kafka.server import BadRecord, KafkaServer
from tidewire.testing.simulation.models.links import Disconnected, Link

__all__ = ["Producer"]

_TRIES = 3
Outcome = Literal["stored", "unsent", "unknown"]


class _Identity(msgspec.Struct):
    """The number of an idempotent producer, and of its last batch for each partition."""

    number: int
    sequences: dict[Place, int] = {}


class Producer:
    """Sends batches, one at a time to each partition. A batch without an answer is sent again under its number.

    What may have been stored and is not known to be is ``unknown``; from then on the producer has a new number, and
    the broker cannot know what it sends again.
    """

    def __init__(self, server: KafkaServer, link: Link) -> None:
        self._server = server
        self._link = link
        self._identity: _Identity | None = None
        self._locks: dict[Place, asyncio.Lock] = {}
        self._turn = 0
        self._made = 0
        self._client = next(server.clients)

    def unique(self) -> str:
        """Return a key for a record, so that a tombstone can name it."""
        self._made += 1
        return f"{self._client}-{self._made}"

    def place(self, topic: str, key: str | None, count: int) -> Place:
        """Return where a message goes: by its key, or in turn."""
        if key is None:
            self._turn += 1
            return topic, self._turn % count
        return topic, lane_of(key, count)

    async def send(self, place: Place, drafts: Sequence[Draft]) -> list[Receipt | Outcome]:
        """Store *drafts* in their order; one that is refused takes the rest of its key with it, and nothing else."""
        results: dict[int, Receipt | Outcome] = {}
        left = dict(enumerate(drafts))
        async with self._locks.setdefault(place, asyncio.Lock()):
            while left:
                try:
                    outcome = await self._deliver(place, list(left.values()))
                except BadRecord as bad:
                    self._refused(list(left)[bad.index], left, results)
                    continue
                results.update(dict.fromkeys(left, outcome))
                break
        return [results[index] for index in range(len(drafts))]

    def _refused(self, index: int, left: dict[int, Draft], results: dict[int, Receipt | Outcome]) -> None:
        bad = left.pop(index)
        results[index] = _rejected(bad, "invalid", "the broker refuses this record")
        key = None if bad.message is None else bad.message.key
        for later in [one for one, draft in left.items() if one > index and key is not None and _key(draft) == key]:
            results[later] = _rejected(left.pop(later), "after_failure")

    async def _deliver(self, place: Place, drafts: Sequence[Draft]) -> Outcome:
        identity = self._identity
        if identity is None:
            try:
                identity = self._identity = _Identity(await self._link.call(self._server.new_producer))
            except Disconnected:
                return "unsent"
        sequence = identity.sequences.get(place, 0) + 1
        sent = certain = False
        try:
            for _ in range(_TRIES):
                try:
                    await self._link.call(self._server.produce, identity.number, place, sequence, drafts=drafts)
                except Disconnected as error:
                    sent |= error.sent
                else:
                    certain = True
                    identity.sequences[place] = sequence
                    return "stored"
            certain = not sent
            return "unknown" if sent else "unsent"
        except BadRecord:
            certain = True
            raise
        finally:
            if not certain and self._identity is identity:  # cancelled, refused or without an answer
                self._identity = None


def _key(draft: Draft) -> str | None:
    return None if draft.message is None else draft.message.key


def _rejected(draft: Draft, reason: str, detail: str = "") -> Receipt:
    message: Message | None = draft.message
    return Receipt("" if message is None else message.id, "rejected", reason, detail)
