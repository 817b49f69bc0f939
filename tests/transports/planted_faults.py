"""Adapters that are broken on purpose where the broker fails. Numbers are those of the catalogue (``BA-…``)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from planted import Adapter, Found, Receiver

from tidewire.errors import TransportUnavailable
from tidewire.model import Delivery, Message, Move, Receipt, Release, Settlement

__all__ = [
    "AcksForTheNextOwner",
    "AcksWhenCancelled",
    "HangsInClose",
    "IsDeafAfterAReconnect",
    "ReportsATimeoutAsRejected",
    "ReportsBeforeTheConfirm",
]


class ReportsBeforeTheConfirm(Adapter):
    """BA-7: a message is said to be stored when it is sent."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Say that all is stored, whatever the broker says."""
        try:
            return await super().publish(messages)
        except TransportUnavailable:
            return [Receipt(one.id, "stored") for one in messages]


class ReportsATimeoutAsRejected(Adapter):
    """BA-9: no answer in time is taken for a refusal."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Say that nothing was stored."""
        try:
            return await super().publish(messages)
        except TransportUnavailable:
            return [Receipt(one.id, "rejected", "invalid") for one in messages]


class AcksForTheNextOwner(Adapter):
    """BA-14: what is settled of a lost lane is committed all the same."""

    class receiver(Receiver):
        """Commits whatever it has in hand."""

        async def end(self, ack: list[Delivery], release: list[Release], move: list[Move]) -> Sequence[Settlement]:
            """Settle in the hands of whoever has it now."""
            settlements = await super().end(ack, release, move)
            lanes = {lane.name: lane for share in self._group.shares.values() for lane in share.lanes}
            for one in settlements:
                if one.status == "lost":
                    lanes[one.delivery.lane].feed(one.delivery.message).settle(one.delivery.position)
            return settlements


class AcksWhenCancelled(Adapter):
    """BA-16: a member that is cancelled acks what it has."""

    class receiver(Receiver):
        """Takes cancelling for the end of the work."""

        async def drain(self) -> None:
            """Wait, and ack when the wait is cut off."""
            try:
                await super().drain()
            except asyncio.CancelledError:
                for lane in self._member.lanes.values():
                    for position in list(lane.topic.in_flight):
                        lane.topic.settle(position)
                raise


class IsDeafAfterAReconnect(Adapter):
    """BA-20, BA-21: after the connection was lost a receiver returns nothing any more, and no error."""

    class receiver(Receiver):
        """Hears one loss, and then nothing."""

        deaf = False

        async def receive(self, limit: int, wait: timedelta) -> Found:
            """Return nothing once the broker was away."""
            if self._broker.down:
                type(self).deaf = True
            if type(self).deaf:
                await asyncio.sleep(wait.total_seconds())
                return []
            return await super().receive(limit, wait)


class HangsInClose(Adapter):
    """BA-33: leaving waits for a broker that does not answer."""

    class receiver(Receiver):
        """Says goodbye for ever."""

        async def drain(self) -> None:
            """Wait for an answer that does not come."""
            if self._broker.down:
                await asyncio.Event().wait()
            await super().drain()
