"""Looking into the broker from outside: what is committed, what lies in the logs, and what operators noted."""

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
from tidewire.testing.simulation.models.common import dead_channel, position_number, size_of
from tidewire.testing.simulation.models.kafka.groups import Committed, Place
from tidewire.testing.simulation.models.kafka.logs import Draft, Partition, Record
from tidewire.testing.simulation.models.kafka.logs import Topic as Log
from tidewire.testing.simulation.models.kafka.server import KafkaServer
from tidewire.testing.simulation.models.links import Link, Refusal

__all__ = ["Look"]


class Look:
    """An inspector and a ledger over one link."""

    def __init__(self, server: KafkaServer, link: Link) -> None:
        self._server = server
        self._link = link

    async def _log(self, name: str) -> Log:
        return existing(await self._link.call(self._server.describe), name)

    async def _committed(self, group: str, name: str) -> list[Committed]:
        places = [(name, number) for number in range(len((await self._log(name)).partitions))]
        found = await self._link.call(self._server.coordinator.committed, group, places)
        return [one or (0, "") for one in found]

    # --- counts -----------------------------------------------------------------------------------------------

    async def topics(self) -> list[TopicInfo]:
        """Return every topic, by name, trimmed."""
        names = [name for name in await self._link.call(self._server.describe) if "|" not in name]
        found: list[TopicInfo] = []
        for name in sorted(names):
            await self.trim(name)
            log = await self._log(name)
            stamps = [record.stamp for partition in log.partitions for record in partition.records]
            first, last = min(stamps, default=None), max(stamps, default=None)
            found.append(
                TopicInfo(
                    name=name, lanes=len(log.partitions), messages=len(stamps), size_bytes=None,
                    retention=log.retention, first=first, last=last, oldest_at=first, newest_at=last,
                    size_bytes_max=log.cap,
                )
            )  # fmt: skip
        return found

    async def groups(self, topic: str | None) -> list[GroupInfo]:
        """Return every group on every topic, or on one, with who has which lane."""
        found: list[GroupInfo] = []
        names = list(await self._link.call(self._server.describe))
        for name, group in groups_of(names, topic):
            owners = await self._link.call(self._server.coordinator.owners, group)
            lanes = {f"{place[0]}/{place[1]}": who for place, who in owners.items() if place[0] == name}
            found.append(GroupInfo(topic=name, group=group, stats=await self.stats(name, group), owners=lanes))
        return found

    async def stats(self, topic: str, group: str) -> Stats:
        """Return exact counts of (topic, group)."""
        now = self._server.clock.now_us()
        ready: list[int] = []
        out = delayed = 0
        await self._log(name_of(InboxChannel(topic, group)))
        for name in (topic, name_of(InboxChannel(topic, group))):
            log = await self._log(name)
            for partition, (base, text) in zip(log.partitions, await self._committed(group, name), strict=True):
                for record in partition.read(max(base, partition.start), len(partition.records)):
                    place = record.offset - base
                    mark = text[place] if place < len(text) else "a"
                    message = record.draft.message
                    if mark == "~" or message is None:
                        continue
                    if "A" <= mark <= "Z":
                        out += 1
                    elif message.not_before is not None and message.not_before > now:
                        delayed += 1
                    else:
                        ready.append(record.stamp)
        dead = len(_living((await self._log(name_of(DeadChannel(topic, group)))).partitions[0].records))
        return Stats(ready=len(ready), in_flight=out, delayed=delayed, dead=dead, oldest_ready=min(ready, default=None))

    # --- browsing ---------------------------------------------------------------------------------------------

    async def browse(self, address: Address, after: int | str | None, *, limit: int) -> list[Browsed]:
        """Return what lies at *address* behind a stamp; of an inbox channel, what is not done."""
        place = 0 if after is None else position_number(after)
        name = name_of(address)
        if isinstance(address, Topic):
            await self._log(name)
            await self.trim(name)
        log = await self._log(name)
        records = sorted((one for partition in log.partitions for one in partition.records), key=_stamp)
        if isinstance(address, DeadChannel):
            records = _living(records)
        elif isinstance(address, InboxChannel):
            undone = await self._undone(address, log)
            records = [record for record in records if record.stamp in undone]
        found = [
            Browsed(record.draft.message, record.stamp, record.stamp)
            for record in records
            if record.stamp > place and record.draft.message is not None
        ]
        return found[:limit]

    async def _undone(self, channel: InboxChannel, log: Log) -> set[int]:
        found: set[int] = set()
        committed = await self._committed(channel.group, name_of(channel))
        for partition, (base, text) in zip(log.partitions, committed, strict=True):
            for record in partition.read(max(base, partition.start), len(partition.records)):
                place = record.offset - base
                if place >= len(text) or text[place] != "~":
                    found.add(record.stamp)
        return found

    async def tombstones(self, channel: Address, positions: Sequence[int | str]) -> list[Draft]:
        """Return what to write so that dead letters are gone; missing ones are ignored."""
        name = name_of(dead_channel(channel))
        wanted = {position_number(position) for position in positions}
        letters = _living((await self._log(name)).partitions[0].records)
        return [Draft(None, record.draft.key) for record in letters if record.stamp in wanted]

    # --- moving and trimming ----------------------------------------------------------------------------------

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """Commit other offsets for a group without members."""
        await self._log(name_of(InboxChannel(topic, group)))
        await self.trim(topic)
        log = await self._log(topic)
        stamp = microseconds(to) if isinstance(to, datetime) else position_number(to)
        if any(partition.trimmed_stamp >= stamp for partition in log.partitions):
            raise TransportRefused(f"{topic}: not everything from {to} on is retained", hint="seek to a later place")
        offsets: dict[Place, Committed] = {}
        for number, partition in enumerate(log.partitions):
            later = [record.offset for record in partition.records if record.stamp >= stamp]
            offsets[topic, number] = (later[0] if later else partition.end, "")
        try:
            await self._link.call(self._server.coordinator.alter, group, offsets)
        except Refusal as refusal:
            raise TransportRefused(f"{group}: members are active on {topic}", hint="stop them, then seek") from refusal

    async def trim(self, name: str, *, early: bool = False) -> None:
        """Delete what every group is done with and retention lets go; the broker would not ask the groups.

        *early*: whatever its age.
        """
        log = await self._log(name)
        limit = goes_until(log.retention, self._server.clock.now_us(), early=early)
        if limit is None:
            return
        names = list(await self._link.call(self._server.describe))
        committed = [await self._committed(group, name) for _, group in groups_of(names, name)]
        offsets: dict[Place, int] = {}
        for number, partition in enumerate(log.partitions):
            keep = min((one[number][0] for one in committed), default=partition.end)
            old = [record.offset + 1 for record in partition.records if record.stamp <= limit and record.offset < keep]
            if old:
                offsets[name, number] = old[-1]
        if offsets:
            await self._link.call(self._server.delete_before, offsets)

    async def size(self, name: str) -> int:
        """Return the bytes of a topic."""
        return sum(map(_bytes_of, (await self._log(name)).partitions))

    async def holders(self, name: str, *, all_of: bool) -> list[str]:
        """Return the groups that are not done with everything; *all_of* them: something is about to come."""
        names = list(await self._link.call(self._server.describe))
        log = await self._log(name)
        found: list[str] = []
        for _, group in groups_of(names, name):
            bases = [base for base, _ in await self._committed(group, name)]
            if all_of or any(
                partition.records and partition.records[-1].offset >= base
                for partition, base in zip(log.partitions, bases, strict=True)
            ):
                found.append(group)
        return found

    # --- the audit --------------------------------------------------------------------------------------------

    async def note(self, act: Act) -> None:
        """Append an act to the audit's topic."""
        await self._link.call(self._server.create, AUDIT, Log(1))
        body = msgspec.json.encode(act)
        message = Message(Topic(AUDIT), act.id, "audit", None, {}, body)
        producer = await self._link.call(self._server.new_producer)
        await self._link.call(self._server.produce, producer, (AUDIT, 0), 1, drafts=[Draft(message)])

    async def acts(self, *, after: int, limit: int) -> list[tuple[int, Act]]:
        """Return acts behind the number *after*."""
        logs = await self._link.call(self._server.describe)
        records = logs[AUDIT].partitions[0].records if AUDIT in logs else []
        found: list[tuple[int, Act]] = []
        for number, record in enumerate(records, 1):
            if number > after and record.draft.message is not None and len(found) < limit:
                found.append((number, msgspec.json.decode(record.draft.message.body, type=Act)))
        return found


def _bytes_of(partition: Partition) -> int:
    return sum(size_of(record.draft.message) for record in partition.records if record.draft.message is not None)


def _living(records: Sequence[Record]) -> list[Record]:
    """Return the records without those that a tombstone has come for."""
    gone = {record.draft.key for record in records if record.draft.message is None}
    return [record for record in records if record.draft.message is not None and record.draft.key not in gone]


def _stamp(record: Record) -> int:
    return record.stamp
