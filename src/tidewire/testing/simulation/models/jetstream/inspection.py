"""Looking into the broker from outside: counts of consumers, messages by their numbers, and what operators noted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from tidewire.clock import microseconds
from tidewire.errors import TransportRefused
from tidewire.model import (
    Act,
    Address,
    Browsed,
    DeadChannel,
    GroupInfo,
    InboxChannel,
    Message,
    Stats,
    Topic,
    TopicInfo,
)
from tidewire.testing.simulation.models.channels import AUDIT, existing, goes_until, groups_of, name_of
from tidewire.testing.simulation.models.common import dead_channel, position_number
from tidewire.testing.simulation.models.intake import Bell
from tidewire.testing.simulation.models.jetstream.lanes import Claim, wait_of
from tidewire.testing.simulation.models.jetstream.server import JetStreamServer, Post, Who
from tidewire.testing.simulation.models.jetstream.streams import Settings
from tidewire.testing.simulation.models.links import Link

__all__ = ["Look"]


class Look:
    """An inspector and a ledger over one link."""

    def __init__(self, server: JetStreamServer, link: Link) -> None:
        self._server = server
        self._link = link

    async def _settings(self, name: str) -> Settings:
        return existing(await self._link.call(self._server.describe), name)

    # --- counts -----------------------------------------------------------------------------------------------

    async def topics(self) -> list[TopicInfo]:
        """Return every topic, by name, trimmed."""
        found: list[TopicInfo] = []
        for name, settings in sorted((await self._link.call(self._server.describe)).items()):
            if "|" in name:
                continue
            await self.trim(name)
            messages = await self._link.call(self._server.look, name)
            numbers = [one.number for one in messages]
            stamps = [one.stamp for one in messages]
            found.append(
                TopicInfo(
                    name=name, lanes=settings.lanes, messages=len(messages),
                    size_bytes=sum(one.size for one in messages), retention=settings.retention,
                    first=min(numbers, default=None), last=max(numbers, default=None),
                    oldest_at=min(stamps, default=None), newest_at=max(stamps, default=None),
                    size_bytes_max=settings.size_max,
                )
            )  # fmt: skip
        return found

    async def groups(self, topic: str | None) -> list[GroupInfo]:
        """Return every group on every topic, or on one, with who has which lane."""
        found: list[GroupInfo] = []
        names = list(await self._link.call(self._server.describe))
        for name, group in groups_of(names, topic):
            there, entries = await self._link.call(self._server.overview, group, Bell())
            alive = {member for member, _ in there}
            owners: dict[str, str] = {}
            for key, entry in entries.items():
                whose, of, subject = key.split("|")
                owner = msgspec.json.decode(entry.value, type=Claim).owner
                if (whose, of) == (group, name) and owner in alive:
                    owners[f"{of}/{subject}"] = owner
            found.append(GroupInfo(topic=name, group=group, stats=await self.stats(name, group), owners=owners))
        return found

    async def stats(self, topic: str, group: str) -> Stats:
        """Return exact counts of (topic, group)."""
        inbox = name_of(InboxChannel(topic, group))
        lanes = (await self._settings(inbox)).lanes
        whose = [(stream, f"{group}.{number}") for stream in (topic, inbox) for number in range(lanes)]
        counts = await self._link.call(self._server.counts, whose)
        now = self._server.clock.now_us()
        waits = [
            one
            for number in range(lanes)
            for one in await self._link.call(self._server.look, inbox, subject=wait_of(str(number)))
        ]
        due = [one for one in waits if (one.message.not_before or 0) <= now]
        oldest = [one.oldest for one in counts if one.oldest is not None] + [one.stamp for one in due]
        dead = await self._link.call(self._server.look, name_of(DeadChannel(topic, group)))
        return Stats(
            ready=sum(one.fresh + one.again for one in counts) + len(due),
            in_flight=sum(one.out for one in counts),
            delayed=len(waits) - len(due),
            dead=len(dead),
            oldest_ready=min(oldest, default=None),
        )

    # --- browsing ---------------------------------------------------------------------------------------------

    async def browse(self, address: Address, after: int | str | None, *, limit: int) -> list[Browsed]:
        """Return what lies at *address* behind a number."""
        place = 0 if after is None else position_number(after)
        name = name_of(address)
        await self._settings(name)
        if isinstance(address, Topic):
            await self.trim(name)
        found = await self._link.call(self._server.look, name)
        return [Browsed(one.message, one.number, one.stamp) for one in found if one.number > place][:limit]

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Delete dead letters and return how many there were."""
        name = name_of(dead_channel(channel))
        await self._settings(name)
        numbers = [position_number(position) for position in positions]
        return await self._link.call(self._server.delete, name, numbers)

    # --- moving and trimming ----------------------------------------------------------------------------------

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """Let the consumers of a group without members begin somewhere else."""
        lanes = (await self._settings(name_of(InboxChannel(topic, group)))).lanes
        there, _ = await self._link.call(self._server.overview, group, Bell())
        if any(topic in msgspec.json.decode(value, type=list[str]) for _, value in there):
            raise TransportRefused(f"{group}: members are active on {topic}", hint="stop them, then seek")
        await self.trim(topic)
        last, purged, purged_stamp = await self._link.call(self._server.ends, topic)
        if isinstance(to, datetime):
            stamp = microseconds(to)
            later = [one.number for one in await self._link.call(self._server.look, topic) if one.stamp >= stamp]
            gone, number = purged > 0 and purged_stamp >= stamp, min(later, default=last + 1)
        else:
            number = position_number(to)
            gone = purged >= number
        if gone:
            raise TransportRefused(f"{topic}: not everything from {to} on is retained", hint="seek to a later place")
        whose: dict[Who, int] = {(topic, f"{group}.{lane}"): number for lane in range(lanes)}
        await self._link.call(self._server.restart_at, whose)

    async def trim(self, name: str, *, early: bool = False) -> None:
        """Delete what every group is done with and retention lets go. *early*: whatever its age."""
        settings = await self._settings(name)
        limit = goes_until(settings.retention, self._server.clock.now_us(), early=early)
        if limit is None:
            return
        old = [one.number for one in await self._link.call(self._server.look, name) if one.stamp <= limit]
        if not old:
            return
        wanted: set[int] = set()
        for _, group in groups_of(list(await self._link.call(self._server.describe)), name):
            for number in range(settings.lanes):
                wanted.update(await self._link.call(self._server.undone, (name, f"{group}.{number}")))
        gone = [number for number in old if number not in wanted]
        if gone:
            await self._link.call(self._server.purge, name, gone)

    async def holders(self, name: str) -> list[str]:
        """Return the groups that are not done with everything."""
        lanes = (await self._settings(name)).lanes
        found: list[str] = []
        for _, group in groups_of(list(await self._link.call(self._server.describe)), name):
            for number in range(lanes):
                if await self._link.call(self._server.undone, (name, f"{group}.{number}")):
                    found.append(group)
                    break
        return found

    # --- the audit --------------------------------------------------------------------------------------------

    async def note(self, act: Act, *, name: str) -> None:
        """Publish an act to the audit's stream, under an id of its own."""
        await self._link.call(self._server.create, AUDIT, Settings())
        message = Message(Topic(AUDIT), act.id, "audit", None, {}, msgspec.json.encode(act))
        await self._link.call(self._server.publish, [Post(AUDIT, "0", message, name, 0)])

    async def acts(self, *, after: int, limit: int) -> list[tuple[int, Act]]:
        """Return acts behind the number *after*."""
        if AUDIT not in await self._link.call(self._server.describe):
            return []
        found = await self._link.call(self._server.look, AUDIT)
        acts = [(one.number, msgspec.json.decode(one.message.body, type=Act)) for one in found if one.number > after]
        return acts[:limit]
