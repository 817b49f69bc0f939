"""Adapters that are broken on purpose, each in one way. Numbers are those of the catalogue (``BA-…``)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import msgspec

from tidewire.model import (
    Act,
    Capabilities,
    Change,
    Delivery,
    GroupInfo,
    GroupSpec,
    InboxChannel,
    LaneEvent,
    Message,
    Move,
    Receipt,
    Release,
    Settlement,
    Standing,
    Stats,
    Subscription,
    Topic,
    TopicSpec,
)
from tidewire.model import Found as Whereabouts
from tidewire.transports.memory import MemoryBroker, MemoryReceiver, MemoryTransport

Found = Sequence[Delivery | LaneEvent]


class Receiver(MemoryReceiver):
    """A receiver whose `settle` is one overridable call."""

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle with `end`."""
        return await self.end(list(ack), list(release), list(move))

    async def end(self, ack: list[Delivery], release: list[Release], move: list[Move]) -> Sequence[Settlement]:
        """Settle as one ought to."""
        return await super().settle(ack=ack, release=release, move=move)


class Adapter(MemoryTransport):
    """A transport with another receiver."""

    receiver: type[MemoryReceiver] = Receiver

    @classmethod
    @asynccontextmanager
    async def open(cls, broker: MemoryBroker) -> AsyncGenerator[MemoryTransport]:
        """Open it."""
        transport = cls(broker)
        try:
            yield transport
        finally:
            transport.close()

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[MemoryReceiver]:
        """Join with the receiver of this class."""
        async with super().subscribe(subscription) as receiver:
            receiver.__class__ = self.receiver
            yield receiver


class DropsReleased(Adapter):
    """BA-1: a released message is gone."""

    class receiver(Receiver):
        """Acks instead."""

        async def end(self, ack: list[Delivery], release: list[Release], move: list[Move]) -> Sequence[Settlement]:
            """Ack what is released."""
            return await super().end([*ack, *(one.delivery for one in release)], [], move)


class LetsNewerOvertake(Adapter):
    """BA-2: a released message goes to the end of its queue."""

    class receiver(Receiver):
        """Publishes again."""

        async def end(self, ack: list[Delivery], release: list[Release], move: list[Move]) -> Sequence[Settlement]:
            """Move what is released behind everything else."""
            again = [
                Move(
                    one.delivery,
                    [msgspec.structs.replace(one.delivery.message, source=one.delivery.message.source + "'")],
                )
                for one in release
            ]
            return await super().end(ack, [], [*move, *again])


class LosesWhenCancelled(Adapter):
    """BA-3: what was fetched when the caller is cancelled is neither kept nor given back."""

    class receiver(Receiver):
        """Waits between the fetch and the return."""

        async def receive(self, limit: int, wait: timedelta) -> Found:
            """Fetch, wait, return."""
            found = await super().receive(limit, wait)
            await asyncio.sleep(0.001)
            return found


class AcksBeforeTheMove(Adapter):
    """BA-4: a move acks first."""

    class receiver(Receiver):
        """Acks, then publishes."""

        async def end(self, ack: list[Delivery], release: list[Release], move: list[Move]) -> Sequence[Settlement]:
            """Ack all, then publish what was moved."""
            await super().end([*ack, *(one.delivery for one in move)], release, [])
            receipts = [await self._transport.publish(one.messages) for one in move]
            return [
                Settlement(one.delivery, "settled" if all(receipt.ok for receipt in said) else "failed", said)
                for one, said in zip(move, receipts, strict=True)
            ]


class CountsFromZero(Adapter):
    """BA-5: the first attempt is number 0."""

    class receiver(Receiver):
        """Counts one less."""

        async def receive(self, limit: int, wait: timedelta) -> Found:
            """Take one off."""
            return [
                msgspec.structs.replace(one, attempt=one.attempt - 1) if isinstance(one, Delivery) else one
                for one in await super().receive(limit, wait)
            ]


class ForgetsCrashes(Adapter):
    """BA-5: a redelivery after a crash is no attempt."""

    class receiver(Receiver):
        """Takes suspects for new."""

        async def receive(self, limit: int, wait: timedelta) -> Found:
            """Give every suspect the first attempt."""
            return [
                msgspec.structs.replace(one, attempt=1) if isinstance(one, Delivery) and one.suspect else one
                for one in await super().receive(limit, wait)
            ]


class RetriesToTheTopic(Adapter):
    """BA-6: retries go to the topic, where every group sees them."""

    class receiver(Receiver):
        """Misdirects what goes to an inbox channel."""

        async def end(self, ack: list[Delivery], release: list[Release], move: list[Move]) -> Sequence[Settlement]:
            """Send to the topic what should go to the inbox channel."""
            return await super().end(
                ack, release, [Move(one.delivery, [_astray(m) for m in one.messages]) for one in move]
            )


def _astray(message: Message) -> Message:
    if not isinstance(message.to, InboxChannel):
        return message
    return msgspec.structs.replace(message, to=Topic(message.to.topic), source=message.source + "'")


class TakesUnroutableForStored(Adapter):
    """BA-8: a message to nowhere is reported as stored."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Report what is unroutable as stored."""
        return [
            Receipt(receipt.id, "stored") if receipt.reason == "unknown_topic" else receipt
            for receipt in await super().publish(messages)
        ]


class RaisesForOne(Adapter):
    """BA-10: one bad message costs the receipts of the others."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Raise if anything is rejected."""
        receipts = await super().publish(messages)
        assert all(receipt.ok for receipt in receipts), "a client library would raise its own error here"
        return receipts


class GoesOnAfterAFailure(Adapter):
    """BA-11: after a failure the rest of the key is stored: a gap."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Publish one by one."""
        return [receipt for one in messages for receipt in await super(GoesOnAfterAFailure, self).publish([one])]


class HidesPartialFailure(Adapter):
    """BA-12: a batch that failed in part counts as stored."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Say that all is stored if anything is."""
        receipts = await super().publish(messages)
        some = any(receipt.ok for receipt in receipts)
        return [Receipt(receipt.id, "stored") if some else receipt for receipt in receipts]


class CommitsTheHighest(Adapter):
    """BA-13: an ack settles everything before it in its lane."""

    class receiver(Receiver):
        """Commits like an offset."""

        async def end(self, ack: list[Delivery], release: list[Release], move: list[Move]) -> Sequence[Settlement]:
            """Ack all lower positions of the same lanes, too."""
            below = [
                (lane.topic, place)
                for one in ack
                for lane in [self._member.lanes.get(one.lane)]
                if lane is not None
                for place in lane.topic.in_flight
                if int(place) < int(one.position)
            ]
            for feed, place in below:
                feed.settle(place)
            return await super().end(ack, release, move)


class AcceptsAStaleEpoch(Adapter):
    """BA-15: a zombie is told that its ack counts."""

    class receiver(Receiver):
        """Knows no epochs."""

        async def end(self, ack: list[Delivery], release: list[Release], move: list[Move]) -> Sequence[Settlement]:
            """Say settled, whoever owns it."""
            return [Settlement(one.delivery, "settled") for one in await super().end(ack, release, move)]


class CountsAShutdown(Adapter):
    """BA-17: leaving spends an attempt of what is unsettled."""

    class receiver(Receiver):
        """Counts what it gives back at the end."""

        def leave(self) -> None:
            """Spend an attempt of everything."""
            for lane in self._member.lanes.values():
                for entry in lane.topic.in_flight.values():
                    lane.topic.count(entry)
            super().leave()


class BeginsAtTheLatest(Adapter):
    """BA-18: a group exists only from when it first runs, and begins at the end."""

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Make topics only."""
        return await super().provision(topics, [], dry_run=dry_run)

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[MemoryReceiver]:
        """Begin at the latest."""
        async with super().subscribe(msgspec.structs.replace(subscription, start="latest")) as receiver:
            yield receiver


class NeverClaims(Adapter):
    """BA-19: what a dead member had is never delivered again."""

    class receiver(Receiver):
        """Skips suspects."""

        async def receive(self, limit: int, wait: timedelta) -> Found:
            """Leave out what somebody else had before."""
            found = await super().receive(limit, wait)
            return [one for one in found if not (isinstance(one, Delivery) and one.suspect)]


class WaitsForAFullBatch(Adapter):
    """BA-22: a receive waits until it has as many as were asked for."""

    class receiver(Receiver):
        """Fills its batch."""

        async def receive(self, limit: int, wait: timedelta) -> Found:
            """Receive until there are *limit*, or no more comes."""
            found = list(await super().receive(limit, wait))
            while 0 < len(found) < limit and (more := await super().receive(limit - len(found), wait)):
                found += more
            return found


class PrefetchesWithoutLimit(Adapter):
    """BA-23: the prefetch is not passed on."""

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[MemoryReceiver]:
        """Take as much as there is."""
        async with super().subscribe(msgspec.structs.replace(subscription, prefetch=1 << 30)) as receiver:
            yield receiver


class FallsAsleepWithoutCredit(Adapter):
    """BA-24: while there is no credit, nobody keeps the lease."""

    class receiver(Receiver):
        """Is alive only while it asks for deliveries."""

        async def receive(self, limit: int, wait: timedelta) -> Found:
            """Fall silent at limit 0."""
            if limit > 0:
                self.wake()
            elif not self._member.silent:
                self.silence()
            return await super().receive(limit, wait)


class DeliversEarly(Adapter):
    """BA-25: delays are ignored, as brokers do that do not know the field."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Forget when it is due."""
        return await super().publish([msgspec.structs.replace(one, not_before=None) for one in messages])


class TruncatesKeys(Adapter):
    """BA-26: keys are cut to what the broker takes."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Cut keys at 128 characters."""
        return await super().publish(
            [one if one.key is None else msgspec.structs.replace(one, key=one.key[:128]) for one in messages]
        )


class DowngradesOrdering(Adapter):
    """BA-27: has no order by key and says nothing when somebody asks for it."""

    @property
    def capabilities(self) -> Capabilities:
        """No order."""
        return msgspec.structs.replace(super().capabilities, order=False)


class BlocksTheLane(Adapter):
    """BA-28: nothing else comes while what was released is not settled."""

    class receiver(Receiver):
        """Gives only what was released, until that is settled."""

        blocked: frozenset[str] = frozenset()

        async def receive(self, limit: int, wait: timedelta) -> Found:
            """Give no more than what blocks."""
            return await super().receive(min(limit, len(self.blocked)) if self.blocked else limit, wait)

        async def end(self, ack: list[Delivery], release: list[Release], move: list[Move]) -> Sequence[Settlement]:
            """Remember what was released."""
            self.blocked = (self.blocked - {one.message.id for one in ack}) | {
                one.delivery.message.id for one in release
            }
            self._member.subscription = msgspec.structs.replace(
                self._member.subscription, prefetch=len(self.blocked) or 256
            )
            return await super().end(ack, release, move)


class DropsAtItsOwnLimit(Adapter):
    """BA-30: after ten hand-outs the broker throws a message away."""

    class receiver(Receiver):
        """Has a limit of its own."""

        async def receive(self, limit: int, wait: timedelta) -> Found:
            """Ack what comes too often."""
            found = await super().receive(limit, wait)
            spent = [one for one in found if isinstance(one, Delivery) and one.attempt > 10]
            await self.end(spent, [], [])
            return [one for one in found if one not in spent]


class GuessesStats(Adapter):
    """BA-31: an unknown count is a guess, below zero at times."""

    async def stats(self, topic: str, group: str) -> Stats:
        """Take one off."""
        stats = await super().stats(topic, group)
        return msgspec.structs.replace(stats, in_flight=(stats.in_flight or 0) - 1)


class LeaksFiles(Adapter):
    """BA-32: every client leaves a file open."""

    leaked: list[int] = []  # noqa: RUF012  # emptied by the test

    def close(self) -> None:
        """Close, but not everything."""
        self.leaked.append(os.open(os.devnull, os.O_RDONLY))
        super().close()


class LosesEmptyHeaders(Adapter):
    """BA-34: a header without a value is taken for none."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Leave empty headers out."""
        return await super().publish(
            [
                msgspec.structs.replace(one, headers={name: text for name, text in one.headers.items() if text})
                for one in messages
            ]
        )


class LooksOnlyIntoTopics(Adapter):
    """An event that was moved to a channel is not found there."""

    async def find(self, event_id: str, *, limit: int = 100) -> Sequence[Whereabouts]:
        """Leave the channels out."""
        found = await super().find(event_id, limit=limit)
        return [one for one in found if isinstance(one.message.to, Topic)]


class TakesHandedOutForSettled(Adapter):
    """A standing is what the highest settled message says, not what was settled."""

    async def find(self, event_id: str, *, limit: int = 100) -> Sequence[Whereabouts]:
        """Say that everything that waits is settled."""
        return [
            msgspec.structs.replace(
                one,
                standings=[
                    Standing(standing.group, "settled" if standing.state == "waiting" else standing.state)
                    for standing in one.standings
                ],
            )
            for one in await super().find(event_id, limit=limit)
        ]


class MatchesBeginnings(Adapter):
    """A correlation id that begins like the one asked for is taken for it."""

    async def related(self, correlation_id: str, *, limit: int = 1_000) -> Sequence[Whereabouts]:
        """Ask for one that is longer as well."""
        found = [*await super().related(correlation_id), *await super().related(correlation_id + "0")]
        return found[:limit]


class RemembersOwners(Adapter):
    """A lane belongs to whoever had it last, dead or alive."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self._before: dict[str, str] = {}

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Fill in the owners of before."""
        found = await super().groups(topic)
        for one in found:
            self._before.update(one.owners or {})
        return [msgspec.structs.replace(one, owners=dict(self._before)) for one in found]


class NumbersActsFromTheEnd(Adapter):
    """The audit is read from its end, so that a reader who goes on behind a number misses what it has not read."""

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Return the newest ones first."""
        return (await super().acts(after=after, limit=1_000_000))[::-1][:limit]
