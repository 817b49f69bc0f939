"""Copying topics from one broker to another, live: what `tidewire bridge` does, over the seams that everybody has.

A member of a group of its own receives on one side, publishes on the other, and acks what is certainly stored there.
Whatever happens in between, it comes again and is published again with the same id: an inbox knows it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol, runtime_checkable

import msgspec

from tidewire.errors import ConfigurationError, TransportRefused, TransportUnavailable
from tidewire.kit.looks import Identified
from tidewire.model import Delivery, GroupInfo, GroupSpec, LaneEvent, Message, Receipt, Stats, Subscription, TopicSpec
from tidewire.protocols import Inspector, Receiver, Transport

__all__ = ["Bridge", "prepare"]

_BATCH = 500
_WAIT = timedelta(seconds=1)
_LEASE = timedelta(seconds=10)
_PAUSE_FIRST, _PAUSE_MAX = 0.1, 5.0
_NOTHING_MAX = 20.0
"""Seconds for which the other side may take nothing of a batch before it counts as away."""
_FOR_NOW = ("full", "after_failure")


class Copied(msgspec.Struct):
    """How far a bridge is: messages that are *stored* on the other side, and *known* there already (repeats that the
    broker itself noticed)."""

    stored: int = 0
    known: int = 0


@runtime_checkable
class _Seen(Protocol):
    """A broker that can say which groups there are, and what waits for one."""

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """See `tidewire.protocols.Inspector`."""
        ...

    async def stats(self, topic: str, group: str) -> Stats:
        """See `tidewire.protocols.Inspector`."""
        ...


async def prepare(
    source: Inspector, target: Transport, topics: Sequence[str], *, group: str, create: bool, lanes: int | None = None
) -> bool:
    """See to it that *topics* are on both sides; with *create* the missing ones are made as they are on the first.

    A side that keeps nothing for groups that are made later needs one on each topic before anything is copied: with
    *create* those that read it on the first side, but *group*, the bridge's own. Return whether that is there already.

    Raises:
        ConfigurationError: one is missing; names all. Or both sides are one broker, whatever it was called.
    """
    await _demand_two(source, target)
    there = {info.name: info for info in await source.topics()}
    missing = [name for name in topics if name not in there]
    if missing:
        known = ", ".join(sorted(there)) or "none"
        raise ConfigurationError(f"there is no topic {', '.join(missing)} to copy from", hint=f"its topics: {known}")
    specs = [TopicSpec(name, lanes or there[name].lanes, there[name].retention) for name in topics]
    changes = await target.provision(specs, (), dry_run=not create)
    wanting = [change.what for change in changes if change.kind == "create"]
    if wanting and not create:
        raise ConfigurationError(
            f"there is no {', '.join(wanting)} to copy to", hint="--provision makes it with as many lanes"
        )
    readers = {name: {info.group for info in await source.groups(name)} for name in topics}
    if not target.capabilities.replay:
        groups = sorted({one for found in readers.values() for one in found} - {group})
        wanted = [GroupSpec(one, [name for name in topics if one in readers[name]]) for one in groups]
        if create and wanted:
            await target.provision((), wanted)
        await _demand_readers(target, topics)
    return all(group in found for found in readers.values())


async def _demand_two(source: object, target: object) -> None:
    """Raise where both are one broker: its own copies would be copied, for ever."""
    if not (isinstance(source, Identified) and isinstance(target, Identified)):
        return
    name = await source.identity()
    if name and name == await target.identity():
        raise ConfigurationError("the two brokers are one, called by two names", hint="name the one to copy to")


async def _demand_readers(target: Transport, topics: Sequence[str]) -> None:
    """Raise unless somebody reads each of *topics*: what nobody reads is not kept."""
    if not isinstance(target, _Seen):
        return
    unread = [name for name in topics if not await target.groups(name)]
    if unread:
        raise ConfigurationError(
            f"no group reads {', '.join(unread)} on the other broker, which keeps nothing for one that is made later",
            hint="--provision makes the groups that read it here; or start their services there once, with --provision",
        )


class Bridge:
    """Copies *topics* as a member of *group*; *copied* counts, and *progress* hears of it after each batch."""

    def __init__(
        self,
        source: Transport,
        target: Transport,
        *,
        group: str,
        topics: Sequence[str],
        member: str,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self._subscription = Subscription(
            group,
            topics,
            member,
            "key" if source.capabilities.order else "none",
            prefetch=_BATCH,
            lease=_LEASE,
        )
        self.copied = Copied()

    async def run(self, *, until_empty: bool, patience: timedelta) -> None:
        """Copy until cancelled, or (*until_empty*) until the group has nothing left, now or later.

        A side that is away is waited for; one that has been for *patience* without a message copied ends it.

        Raises:
            TransportUnavailable: nothing could be copied for so long.
            TransportRefused: the other side will never take a message. It stays where it is, and all behind it.
        """
        group = GroupSpec(self._subscription.group, self._subscription.topics)
        loop = asyncio.get_running_loop()
        pause, moved, since = _PAUSE_FIRST, -1, loop.time()
        while True:  # until cancelled, or nothing is left
            if self.copied.stored + self.copied.known != moved:
                pause, moved, since = _PAUSE_FIRST, self.copied.stored + self.copied.known, loop.time()
            try:
                await self._source.provision((), [group])
                async with self._source.subscribe(self._subscription) as receiver:
                    await self._copy(receiver, until_empty=until_empty)
                return
            except TransportUnavailable:
                if loop.time() - since > patience.total_seconds():
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, _PAUSE_MAX)

    async def _copy(self, receiver: Receiver, *, until_empty: bool) -> None:
        while True:  # until cancelled, or nothing is left
            items = await receiver.receive(_BATCH, _WAIT)
            if not items and until_empty and await self._is_empty():
                return
            deliveries = [item for item in items if isinstance(item, Delivery)]
            if deliveries:
                await self._store(deliveries)
                await receiver.settle(ack=deliveries)
                self._progress(self.copied.stored + self.copied.known)
            leaving = [item.lane for item in items if isinstance(item, LaneEvent) and item.kind == "revoking"]
            if leaving:
                await receiver.steer(drained=leaving)

    async def _store(self, deliveries: Sequence[Delivery]) -> None:
        """Publish until the other side has each of *deliveries*, for certain: what it is unsure of goes once more.

        Order stays, since a message that was not stored lets none of its key pass, and nothing new is sent before.

        Raises:
            TransportUnavailable: it has taken nothing for a while. TransportRefused: it never will.
        """
        waiting = [_copy_of(delivery) for delivery in deliveries]
        loop = asyncio.get_running_loop()
        pause, since = _PAUSE_FIRST, loop.time()
        while waiting:
            receipts = await self._target.publish(waiting)
            self.copied.stored += sum(receipt.status == "stored" for receipt in receipts)
            self.copied.known += sum(receipt.status == "duplicate" for receipt in receipts)
            refused = [one for one in zip(waiting, receipts, strict=True) if _is_final(one[1])]
            if refused:
                message, receipt = refused[0]
                raise TransportRefused(
                    f"the other broker refuses event {message.id} of {message.to}: {receipt.reason} {receipt.detail}",
                    hint="it stays where it is, and so does what follows; once the other broker takes it, begin again",
                )
            left = [message for message, receipt in zip(waiting, receipts, strict=True) if not receipt.ok]
            if len(left) < len(waiting):
                pause, since = _PAUSE_FIRST, loop.time()
            elif loop.time() - since > _NOTHING_MAX:
                first = receipts[0]
                raise TransportUnavailable(
                    f"the other broker takes nothing: {first.status} {first.reason} {first.detail}".rstrip(),
                    hint="make room there, and begin again: what was not copied is still here",
                )
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _PAUSE_MAX)
            waiting = left

    async def _is_empty(self) -> bool:
        """Whether nothing is left for the group: nothing that waits or is yet to come due, and nothing that another
        member has, as one that was killed does until the broker notices."""
        if not isinstance(self._source, _Seen):
            raise ConfigurationError("the broker to copy from cannot say what is left", hint="use --follow")
        for topic in self._subscription.topics:
            stats = await self._source.stats(topic, self._subscription.group)
            if stats.ready or stats.delayed or stats.in_flight != 0:
                return False
        return True


def _copy_of(delivery: Delivery) -> Message:
    """Return what is published on the other side: the same, at once; header values that are not text in base64."""
    message = delivery.message
    headers = dict(message.headers)
    for name, raw in (delivery.foreign or {}).items():
        headers[f"foreign-{name}"] = base64.b64encode(raw).decode()
    return msgspec.structs.replace(message, headers=headers, not_before=None)


def _is_final(receipt: Receipt) -> bool:
    return receipt.status == "rejected" and receipt.reason not in _FOR_NOW
