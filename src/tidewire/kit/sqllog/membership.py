"""Being a member: joining, sharing lanes fairly with the others, noticing what was lost, and leaving."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import msgspec

from tidewire.errors import TransportError, TransportUnavailable
from tidewire.kit.groups import first_error
from tidewire.kit.sqllog.home import Connection
from tidewire.kit.sqllog.lanes import Lane, extend, give_back, take, wanted
from tidewire.kit.sqllog.names import TopicRow
from tidewire.kit.sqllog.receiver import LogReceiver
from tidewire.kit.sqllog.shared import Shared
from tidewire.kit.waits import happens
from tidewire.model import LaneEvent, Subscription

__all__ = ["joined"]

_LEAVING_MAX = 1.0
_logger = logging.getLogger("tidewire.broker")


@asynccontextmanager
async def joined(
    shared: Shared, subscription: Subscription, subs: Sequence[tuple[int, TopicRow]]
) -> AsyncGenerator[LogReceiver]:
    """Be a member of the group while the block lasts."""
    receiver = LogReceiver(shared, subscription, subs)
    membership = Membership(shared, receiver)
    try:
        await membership.join()
        async with asyncio.TaskGroup() as tasks:
            balancing = tasks.create_task(membership.balance())
            try:
                yield receiver
                balancing.cancel()
                await membership.wait_for_settles()  # who was cut off by an error or a cancel settles nothing more
            finally:
                balancing.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    finally:
        await asyncio.shield(membership.leave())


class Membership:
    """The lanes of one member. The lease is extended from the writer thread, so a busy event loop loses nothing."""

    def __init__(self, shared: Shared, receiver: LogReceiver) -> None:
        self._shared = shared
        self._receiver = receiver
        self._subscription = receiver.subscription
        self._name = receiver.subscription.member
        self._lease = int(receiver.subscription.lease / timedelta(microseconds=1)) * 1_000
        self._topics = msgspec.json.encode(sorted(topic.id for _, topic in receiver.subs)).decode()

    async def join(self) -> None:
        """Appear among the members and take what falls to us."""

        await self._shared.writer.submit(self._appear)
        self._shared.receivers.append(self._receiver)
        interval = max(self._lease / 3e9, 0.02)
        self._shared.writer.every(self, interval, self._extend)
        await self._shared.tell_members(self._subscription.group)
        await self._balance_once()

    def _appear(self, connection: Connection) -> None:
        ticks, home = self._ticks(), self._shared.home
        connection.execute(
            "INSERT INTO member (name, grp, topics, address, boot, until) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET until = excluded.until, address = excluded.address, boot = excluded.boot",
            (self._name, self._subscription.group, self._topics, home.address, home.boot, ticks + self._lease),
        )
        connection.execute(  # those whose lease ended long ago
            "DELETE FROM member WHERE boot != ? OR until < ?", (home.boot, ticks - 10 * self._lease)
        )

    def _extend(self, connection: Connection) -> None:
        if not extend(connection, self._name, self._until()):
            self._appear(connection)  # others have taken us for gone, after an outage

    async def balance(self) -> None:
        """Until cancelled: share lanes with whoever is there, as soon as that changes, and look now and then."""
        interval = min(max(self._lease / 4e9, 0.05), 1.0)
        while True:
            await happens(self._receiver.members_changed, interval)
            self._receiver.members_changed.clear()
            try:
                await self._balance_once()
            except TransportUnavailable as error:  # the next round tries again; leases are kept elsewhere
                _logger.warning("tidewire.broker.balance", extra={"error_type": type(error).__name__})

    async def wait_for_settles(self) -> None:
        """Hand nothing out any more and let what is out be settled, within the grace time."""
        for lane in self._receiver.lanes.values():
            lane.revoking = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._subscription.grace.total_seconds()):
                while self._receiver.unsettled:
                    self._receiver.calm.clear()
                    await self._receiver.calm.wait()

    async def leave(self) -> None:
        """Give everything back and disappear, so that others take over at once."""
        receiver = self._receiver
        self._shared.writer.no_more(self)
        receiver.closed = True
        receiver.woken.set()
        if receiver in self._shared.receivers:
            self._shared.receivers.remove(receiver)
        lanes, now = list(receiver.lanes.values()), self._shared.clock.now_us()
        receiver.lanes.clear()

        def disappear(connection: Connection) -> None:
            connection.execute("DELETE FROM member WHERE name = ?", (self._name,))
            give_back(connection, lanes, self._name, clean=True, now_us=now)

        # What cannot be given back now is given back later; if never, it is free when its lease ends.
        with suppress(TransportError, TimeoutError):
            async with asyncio.timeout(_LEAVING_MAX):
                await self._shared.writer.submit(disappear, vital=True)
                await self._shared.tell_members(self._subscription.group)

    async def _balance_once(self) -> None:
        receiver = self._receiver
        await self._drop_lost()
        members = [
            row[0]
            for row in await self._shared.home.read(
                "SELECT name FROM member WHERE grp = ? AND topics = ? AND boot = ? AND until > ?",
                (self._subscription.group, self._topics, self._shared.home.boot, self._ticks()),
            )
        ]
        if self._name not in members:
            members.append(self._name)
        all_lanes = {(sub, number): topic for sub, topic in receiver.subs for number in range(topic.lanes)}
        mine = wanted(members, self._name, all_lanes)
        held = {(lane.sub, lane.number): lane for lane in receiver.lanes.values()}
        await self._take([(sub, number, all_lanes[sub, number]) for sub, number in sorted(mine - held.keys())])
        await self._revoke([held[place] for place in held.keys() - mine])

    async def _take(self, places: Sequence[tuple[int, int, TopicRow]]) -> None:
        """Take those of *places* that are free, in one transaction."""
        if not places or not await self._any_free(places):
            return

        def take_all(connection: Connection) -> list[Lane]:
            taken: list[Lane] = []
            for sub, number, topic in places:
                found = take(
                    connection,
                    sub,
                    number,
                    owner=self._name,
                    boot=self._shared.home.boot,
                    now_ticks=self._ticks(),
                    until=self._until(),
                    now_us=self._shared.clock.now_us(),
                    prefetch=self._subscription.prefetch,
                )
                if found is not None:
                    epoch, pos, past = found
                    name = f"{topic.name}/{number}"
                    lane = Lane(name=name, sub=sub, topic=topic.id, number=number, epoch=epoch, pos=pos, past=past)
                    taken.append(lane)
            return taken

        for lane in await self._shared.writer.submit(take_all):
            if not self._receiver.closed:
                self._receiver.assigned(lane)

    async def _any_free(self, places: Sequence[tuple[int, int, TopicRow]]) -> bool:
        now = self._ticks()
        for sub, number, _ in places:
            for owner, boot, until in await self._shared.home.read(
                "SELECT owner, boot, until FROM cursor WHERE sub = ? AND lane = ?", (sub, number)
            ):
                if not owner or owner == self._name or boot != self._shared.home.boot or until <= now:
                    return True
        return False

    async def _revoke(self, lanes: Sequence[Lane]) -> None:
        """Ask for what falls to others; what is not drained in time goes all the same."""
        now, grace = self._ticks(), int(self._subscription.grace / timedelta(microseconds=1)) * 1_000
        overdue: list[Lane] = []
        for lane in lanes:
            if not lane.revoking:
                lane.revoking = True
                lane.deadline = now + grace
                self._receiver.events.append(LaneEvent("revoking", lane.name, lane.epoch, lane.deadline))
                self._receiver.woken.set()
            elif now > lane.deadline:
                overdue.append(lane)
        for lane in overdue:  # said first: what its events leave free is not handed out before that is known
            self._receiver.lost(lane)
        await self._receiver.give_back(overdue, clean=False)

    async def _drop_lost(self) -> None:
        """Notice lanes that somebody else has taken, while we were paused beyond our lease."""
        rows = await self._shared.home.read("SELECT sub, lane, epoch FROM cursor WHERE owner = ?", (self._name,))
        ours = {(sub, number): epoch for sub, number, epoch in rows}
        for lane in list(self._receiver.lanes.values()):
            if ours.get((lane.sub, lane.number)) != lane.epoch:
                self._receiver.lost(lane)

    def _ticks(self) -> int:
        return self._shared.clock.ticks()

    def _until(self) -> int:
        return self._shared.clock.ticks() + self._lease
