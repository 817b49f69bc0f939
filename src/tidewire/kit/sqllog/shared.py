"""One open log in this process: its writer, its home, and everybody here who waits for its commits."""

from __future__ import annotations

import asyncio
from typing import Protocol

from tidewire.kit.sqllog.home import Connection, Home
from tidewire.kit.sqllog.lanes import Lane
from tidewire.kit.sqllog.log import append_due
from tidewire.kit.sqllog.names import Names
from tidewire.kit.sqllog.writer import Writer
from tidewire.model import Subscription
from tidewire.protocols import Clock

__all__ = ["Shared", "Waiting"]


class Waiting(Protocol):
    """A receiver of this process, as those see it who wake it up or count what it has."""

    subscription: Subscription
    members_changed: asyncio.Event
    lanes: dict[str, Lane]

    def touched(self, topics: set[int] | None, subs: set[int] | None) -> None:
        """A commit touched these (None: anything)."""
        ...

    def lost(self, lane: Lane) -> None:
        """*lane* is not ours any more, or nobody knows what is settled of it."""
        ...


class Shared:
    """What the transport and its receivers have in common."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.receivers: list[Waiting] = []
        self.names = Names(home)
        self.writer = Writer(home, self.names, wake=self._wake, doubted=self._doubted)
        home.listen(self._heard)

    @property
    def clock(self) -> Clock:
        """The clock that judges leases and what is due."""
        return self.home.clock

    async def append_due(self) -> None:
        """Append delayed messages whose time has come."""
        now = self.clock.now_us()

        def append(connection: Connection) -> None:
            self.writer.topics |= append_due(connection, now)

        await self.writer.submit(append)

    async def tell_members(self, group: str) -> None:
        """Let the members of *group*, here and elsewhere, look who is there."""
        for receiver in self.receivers:
            if receiver.subscription.group == group:
                receiver.members_changed.set()
        await self.home.tell_members(group)

    def _heard(self, topics: set[int] | None, subs: set[int] | None, *, members: bool) -> None:
        """Another process has committed something."""
        for receiver in self.receivers:
            receiver.touched(topics, subs)
            if members:
                receiver.members_changed.set()

    def _wake(self, topics: set[int], subs: set[int]) -> None:
        for receiver in self.receivers:
            receiver.touched(topics, subs)

    def _doubted(self) -> None:
        """Nobody knows what a commit has settled: every lane is read anew, by whoever takes it."""
        for receiver in self.receivers:
            for lane in list(receiver.lanes.values()):
                receiver.lost(lane)
            receiver.members_changed.set()
