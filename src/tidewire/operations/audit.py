"""The audit: who did what to which messages, when it began and how it ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, TypeGuard

import msgspec

from tidewire.chance import Ids, UUID7Ids
from tidewire.clock import SystemClock, moment
from tidewire.errors import PublishError, PublishUnknown, TransportError
from tidewire.model import Act, Envelope, Message, Topic, TopicSpec
from tidewire.operations.letters import inspector_of
from tidewire.protocols import Clock, Ledger, Transport
from tidewire.rules.cloudevents import headers_of

__all__ = ["AUDIT_TOPIC", "Operator", "TopicLedger", "acts_of", "ended", "interrupted", "ledger_of"]

AUDIT_TOPIC = "tidewire.audit"
_PAGE = 100
_decode_act = msgspec.json.Decoder(Act).decode


class Operator(NamedTuple):
    """Who acts, and where stamps and ids come from."""

    who: str
    clock: Clock = SystemClock()
    ids: Ids = UUID7Ids()


class TopicLedger:
    """A `Ledger` for a broker that has none: acts are messages of the topic ``tidewire.audit``, kept for ever."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._read: tuple[int, int | str | None] = (0, None)  # how far `acts` has come: its number, its position

    async def note(self, act: Act) -> None:
        """Publish *act*; the topic is created when it is first needed.

        Raises:
            PublishError: it is not confirmed.
            TransportError: the broker did not take it, or will not have the topic.
        """
        spec = TopicSpec(AUDIT_TOPIC, lanes=1, retention=None)
        for change in await self._transport.provision([spec], []):
            if change.kind == "conflict":
                raise TransportError(f"{change.what} cannot hold the audit: {change.detail}")
        name = f"{act.id}-{act.state}"
        envelope = Envelope(name, "tidewire", "tidewire.audit.noted", moment(act.at))
        message = Message(Topic(AUDIT_TOPIC), name, "tidewire", None, headers_of(envelope), msgspec.json.encode(act))
        (receipt,) = await self._transport.publish([message])
        if not receipt.ok:
            kind = PublishUnknown if receipt.status == "unknown" else PublishError
            raise kind(f"the audit did not take the act: {receipt.reason} {receipt.detail}", event_id=name)

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Return acts, oldest first, numbered from 1 in the order of the topic."""
        inspector = inspector_of(self._transport)
        if not any(topic.name == AUDIT_TOPIC for topic in await inspector.topics()):
            return []
        found: list[tuple[int, Act]] = []
        number, place = self._read if self._read[0] <= after else (0, None)
        while len(found) < limit:
            page = await inspector.browse(Topic(AUDIT_TOPIC), after=place, limit=_PAGE)
            if not page:
                break
            for browsed in page:
                number += 1
                place = browsed.position
                if number > after:
                    found.append((number, _decode_act(browsed.message.body)))
                if len(found) == limit:
                    break
        self._read = (number, place)
        return found


def ledger_of(transport: Transport) -> Ledger:
    """Return the broker's own ledger, or the one that keeps acts in a topic."""
    return transport if _keeps_acts(transport) else TopicLedger(transport)


async def acts_of(transport: Transport) -> AsyncGenerator[tuple[int, Act]]:
    """Give every act with its number, oldest first."""
    ledger, after = ledger_of(transport), 0
    while page := await ledger.acts(after=after, limit=_PAGE):
        for numbered in page:
            yield numbered
        after = page[-1][0]


async def interrupted(transport: Transport, verb: str) -> list[Act]:
    """Return the acts of *verb* that have begun and not ended, oldest first."""
    begun: dict[str, Act] = {}
    async for _, act in acts_of(transport):
        if act.verb != verb:
            continue
        if act.state == "begun":
            begun[act.id] = act
        else:
            begun.pop(act.id, None)
    return list(begun.values())


async def ended(
    transport: Transport, begun: Act, *, by: Operator, count: int, detail: object, failed: bool = False
) -> Act:
    """Note that what *begun* began has ended, with *count* letters and *detail* (made JSON), and return the act."""
    act = msgspec.structs.replace(
        begun,
        at=by.clock.now_us(),
        who=by.who,
        state="failed" if failed else "done",
        count=count,
        detail=msgspec.json.encode(detail).decode(),
    )
    await ledger_of(transport).note(act)
    return act


def _keeps_acts(transport: object) -> TypeGuard[Ledger]:
    return all(callable(getattr(transport, name, None)) for name in ("note", "acts"))
