"""Looking into the broker, and what operators do: nothing here consumes, and nothing disturbs a member."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from tidewire.clock import microseconds
from tidewire.errors import TransportRefused
from tidewire.kit.specs import check_address
from tidewire.model import Address, Browsed, DeadChannel, GroupInfo, InboxChannel, Stats, Topic, TopicInfo
from tidewire.protocols import Clock
from tidewire.transports.kafka.asking import Asker, Place, Record, Span
from tidewire.transports.kafka.dead import DeadLog, look_into
from tidewire.transports.kafka.library import at_or_after
from tidewire.transports.kafka.merging import before, end_position, in_order, position_of, positions_in
from tidewire.transports.kafka.names import address_of, dead_topic, inbox_topic, lane_name, log_of
from tidewire.transports.kafka.producing import Publisher
from tidewire.transports.kafka.progress import Progress, Saved, read_saved
from tidewire.transports.kafka.receiver import KafkaReceiver
from tidewire.transports.kafka.topology import Names, retention_of

__all__ = ["KafkaInspector"]

_READ_MAX = 10_000
_MILLISECOND = timedelta(milliseconds=1)


class KafkaInspector:
    """See `tidewire.protocols.Inspector`."""

    def __init__(self, names: Names, publisher: Publisher, clock: Clock) -> None:
        self._names = names
        self._publisher = publisher
        self._clock = clock
        self._receivers: list[KafkaReceiver] = []
        self._dead_logs: dict[str, DeadLog] = {}

    def _check_open(self) -> None:
        raise NotImplementedError("the transport says whether it is open")

    @property
    def _asker(self) -> Asker:
        return self._names.asker

    async def topics(self) -> Sequence[TopicInfo]:
        """Return every topic that could be one of ours, by name; its size in bytes is not asked for."""
        self._check_open()
        await self._names.look()
        names = sorted(name for name in self._names.all() if isinstance(address_of(name), Topic))
        places = [place for name in names for place in self._names.places(name)]
        configs = await self._asker.configs(names)
        begins, ends = await self._asker.begins(places), await self._asker.ends(places)
        spans = {place: Span(begins[place], ends[place], 1) for place in places}
        to: dict[str, Address] = {name: Topic(name) for name in names}
        heads = await self._asker.read(to, spans)
        tails = await self._asker.read(to, {place: Span(max(begins[place], ends[place] - 1), ends[place], 1)
                                            for place in places})  # fmt: skip
        return [self._topic(name, configs[name], begins, ends=ends, heads=heads, tails=tails) for name in names]

    def _topic(
        self,
        name: str,
        config: Mapping[str, str],
        begins: Mapping[Place, int],
        *,
        ends: Mapping[Place, int],
        heads: Mapping[Place, Sequence[Record]],
        tails: Mapping[Place, Sequence[Record]],
    ) -> TopicInfo:
        places = self._names.places(name)
        firsts = [(record.read.stored_at, place[1]) for place in places for record in heads[place]]
        lasts = [(record.read.stored_at, place[1]) for place in places for record in tails[place]]
        first = last = None
        if firsts and lasts:
            oldest = min((one.read.at, place[1]) for place in places for one in heads[place])[1]
            newest = max((one.read.at, place[1]) for place in places for one in tails[place])[1]
            first = position_of(oldest, [begins[place] for place in places])
            last = end_position(newest, [ends[place] for place in places])
        return TopicInfo(
            name=name,
            lanes=len(places),
            messages=sum(ends[place] - begins[place] for place in places),
            size_bytes=None,
            retention=retention_of(config),
            first=first,
            last=last,
            oldest_at=min(firsts)[0] if firsts else None,
            newest_at=max(lasts)[0] if lasts else None,
        )

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Return every group, by topic and name, with the live member that has each lane."""
        self._check_open()
        await self._names.look()
        found = [address for log in self._names.all() if isinstance(address := address_of(log), InboxChannel)]
        wanted = sorted(
            (one.topic, one.group)
            for one in found
            if topic in (None, one.topic) and self._names.partitions(one.topic) is not None
        )
        members = await self._asker.members(sorted({group for _, group in wanted}))
        stats = await self._stats(wanted, members, now=self._clock.now_us())
        return [
            GroupInfo(
                topic=name,
                group=group,
                stats=stats[name, group],
                owners={
                    lane_name(log, partition): member
                    for member, places in members[group].items()
                    for log, partition in places
                    if log == name
                },
            )
            for name, group in wanted
        ]

    async def stats(self, topic: str, group: str) -> Stats:
        """Return the counts of (topic, group). What members of other processes have in hand, the broker cannot tell:
        then ``in_flight`` is None, and ``ready`` holds it."""
        self._check_open()
        now = self._clock.now_us()
        await self._known(InboxChannel(topic, group))
        return (await self._stats([(topic, group)], await self._asker.members([group]), now=now))[topic, group]

    async def _stats(
        self, wanted: Sequence[tuple[str, str]], members: Mapping[str, Mapping[str, object]], *, now: int
    ) -> dict[tuple[str, str], Stats]:
        """Return the counts of each (topic, group), with as few questions as for one."""
        books = await self._books(wanted)
        ends = await self._asker.ends({place for one in books.values() for place in one})
        out = {pair: self._out(pair[1]) for pair in wanted}
        dead = await self._dead(wanted)
        stats: dict[tuple[str, str], Stats] = {}
        for pair, own in books.items():
            topic, inbox, taken = pair[0], inbox_topic(*pair), out[pair]
            spans = {
                place: Span(_first(book, taken.get(place, frozenset()), now), ends[place], 1)
                if place[0] == topic
                else Span(book.low, ends[place], _READ_MAX)
                for place, book in own.items()
            }
            records = await self._asker.read({topic: Topic(topic), inbox: InboxChannel(*pair)}, spans)
            total, delayed, in_flight, oldest = _count(own, ends, records=records, out=taken, now=now)
            strangers = set(members[pair[1]]) - {one.subscription.member for one in self._receivers}
            stats[pair] = Stats(
                ready=max(0, total - delayed - in_flight),
                in_flight=None if strangers and total > delayed + in_flight else in_flight,
                delayed=delayed,
                dead=len(dead[pair].live),
                oldest_ready=oldest,
            )
        return stats

    async def lag(self, group: str, lanes: Sequence[str]) -> int:
        """Return how far the ends of *lanes* are ahead of what was handed out. An end that is ahead and has nothing to
        be read in between (only marks of transactions) is none. What was never looked at counts as due."""
        self._check_open()
        mine = [one for one in self._receivers if one.subscription.group == group]
        awaited = {place: offset for one in mine for place, offset in one.reading(lanes).items()}
        with self._asker.asked_anew():
            ends = await self._asker.ends(awaited)
            spans = {place: Span(offset, ends[place], 1) for place, offset in awaited.items() if offset < ends[place]}
            to: dict[str, Address] = {log: one for log, _ in spans if (one := address_of(log)) is not None}
            records = await self._asker.read(to, spans)
        return sum(spans[place].end - spans[place].start for place, found in records.items() if found)

    def _out(self, group: str) -> dict[Place, frozenset[int]]:
        """Return what members of this process have in hand."""
        mine = [one for one in self._receivers if one.subscription.group == group]
        return {place: offsets for one in mine for place, offsets in one.out().items()}

    async def _books(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[Place, Progress]]:
        """Return how far each group is in each partition of its topic and its inbox channel."""
        places = {pair: self._names.places(pair[0]) + self._names.places(inbox_topic(*pair)) for pair in wanted}
        asked: dict[str, list[Place]] = {}
        for pair in wanted:
            asked.setdefault(pair[1], []).extend(places[pair])
        committed = await self._asker.committed(asked)
        begins = await self._asker.begins(
            {place for pair in wanted for place in places[pair] if place not in committed[pair[1]]}
        )
        return {
            pair: {
                place: Progress(committed[pair[1]][place][0], read_saved(committed[pair[1]][place][1]))
                if place in committed[pair[1]]
                else Progress(begins[place], Saved())
                for place in places[pair]
            }
            for pair in wanted
        }

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Return messages in the order they were stored; over several lanes, in that of their publishers' clocks."""
        self._check_open()
        check_address(address)
        log = await self._known(address)
        places = self._names.places(log)
        begins, ends = await self._asker.begins(places), await self._asker.ends(places)
        starts = [begins[place] for place in places]
        if after is not None:
            starts = [max(pair) for pair in zip(starts, positions_in(after, len(places), behind=True), strict=True)]
        if isinstance(address, DeadChannel):
            return await self._letters(address, starts[0], limit)
        books: Mapping[Place, Progress] = {}
        if isinstance(address, InboxChannel):
            (books,) = (await self._books([(address.topic, address.group)])).values()
        for place, book in books.items():
            if place[0] == log:
                starts[place[1]] = max(starts[place[1]], book.low)
                limit += len(book.settled)
        spans = {place: Span(starts[place[1]], ends[place], limit) for place in places}
        records = await self._asker.read({log: address}, spans)
        found = [
            Browsed(record.read.message, position, record.read.stored_at)
            for partition, record, position in in_order([records[place] for place in places], starts)
            if not (books and books[log, partition].is_settled(record.offset))
        ]
        return found[: limit - sum(len(book.settled) for place, book in books.items() if place[0] == log)]

    async def _letters(self, address: DeadChannel, start: int, limit: int) -> list[Browsed]:
        (dead,) = (await self._dead([(address.topic, address.group)])).values()
        wanted = sorted(offset for offset in dead.live if offset >= start)[:limit]
        if not wanted:
            return []
        place = (dead.log, 0)
        records = await self._asker.read({dead.log: address}, {place: Span(wanted[0], wanted[-1] + 1, 1 << 62)})
        chosen = set(wanted)
        return [
            Browsed(record.read.message, record.offset, record.read.stored_at)
            for record in records[place]
            if record.offset in chosen
        ]

    async def _dead(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], DeadLog]:
        """Return which dead letters there are in each of these channels now."""
        await self._names.know([dead_topic(*pair) for pair in wanted])
        found = {
            pair: self._dead_logs.setdefault(dead_topic(*pair), DeadLog(dead_topic(*pair), DeadChannel(*pair)))
            for pair in wanted
        }
        for pair, dead in found.items():
            if self._names.partitions(dead.log) is None:  # somebody deleted it, and what was in it
                found[pair] = self._dead_logs[dead.log] = DeadLog(dead.log, dead.address)
        await look_into([one for one in found.values() if self._names.partitions(one.log) is not None], self._asker)
        return found

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """Move an inactive group; its inbox channel stays as it is. A time is judged in milliseconds.

        Raises:
            TransportRefused: a member is active, or what is asked for is no longer retained.
        """
        self._check_open()
        await self._known(InboxChannel(topic, group))
        if (await self._asker.members([group]))[group]:
            raise TransportRefused(f"group {group} has members", hint="stop them first")
        places = self._names.places(topic)
        begins = await self._asker.begins(places)
        wanted = await self._wanted(to, places, begins)
        if gone := [place for place in places if wanted[place] < begins[place]]:
            raise TransportRefused(
                f"{topic}: partition {gone[0][1]} begins at {begins[gone[0]]}; {wanted[gone[0]]} is no longer retained"
            )
        books = (await self._asker.committed({group: places}))[group]
        entries: dict[Place, tuple[int, str]] = {}
        for place in places:
            epoch = read_saved(books[place][1]).epoch if place in books else 0
            entries[place] = Progress(wanted[place], Saved()).saved(epoch, open_=False, slack=0)
        await self._asker.move(group, entries)

    def before(self, position: int | str) -> int | str | None:
        """See `tidewire.kit.looks.StepsBack`."""
        return before(position)

    async def _wanted(
        self, to: int | str | datetime, places: Sequence[Place], begins: Mapping[Place, int]
    ) -> dict[Place, int]:
        ends = await self._asker.ends(places)
        if not isinstance(to, datetime):
            offsets = positions_in(to, len(places), behind=False)
            return {place: min(offset, ends[place]) for place, offset in zip(places, offsets, strict=True)}
        at = microseconds(to)
        found = await self._asker.offsets(places, at_or_after(at))
        gone = any(begins[place] > 0 for place in places)
        if gone:  # what was let go may have been stored at or after this time
            heads = await self._asker.read(
                {places[0][0]: Topic(places[0][0])}, {place: Span(begins[place], ends[place], 1) for place in places}
            )
            for place in places:
                oldest = heads[place][0].read.stored_at if heads[place] else self._clock.now_us()
                if begins[place] > 0 and at < oldest:
                    raise TransportRefused(f"{place[0]}: what was stored at {to.isoformat()} is no longer retained")
        return {place: found[place] if found[place] >= 0 else ends[place] for place in places}

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Remove dead letters: a tombstone for each, so that compaction drops its bytes, and where nothing older is
        left they go at once."""
        self._check_open()
        if not isinstance(channel, DeadChannel):
            raise TransportRefused("only dead letters can be removed")
        await self._known(channel)
        wanted = [positions_in(position, 1, behind=False)[0] for position in positions]
        (dead,) = (await self._dead([(channel.topic, channel.group)])).values()
        chosen = {offset: dead.live[offset] for offset in wanted if offset in dead.live}
        if chosen:
            await self._publisher.tombstones(dead.log, [(key, offset) for offset, key in chosen.items()])
            await dead.removed(self._asker, chosen)
        return len(chosen)

    async def _known(self, address: Address) -> str:
        """Return the log of *address*.

        Raises:
            TransportRefused: there is none.
        """
        log = log_of(address)
        await self._names.know([log])
        if self._names.partitions(log) is None:
            raise TransportRefused(f"there is no {address}", hint="`tidewire topics` and `tidewire groups` list them")
        return log


def _first(book: Progress, out: frozenset[int], now: int) -> int:
    """Return the first offset that may be handed out now."""
    offset = book.low
    while book.is_settled(offset) or offset in out or book.due(offset) > now:
        offset += 1
    return offset


def _count(
    books: Mapping[Place, Progress],
    ends: Mapping[Place, int],
    *,
    records: Mapping[Place, Sequence[Record]],
    out: Mapping[Place, frozenset[int]],
    now: int,
) -> tuple[int, int, int, int | None]:
    """Return how many are unsettled, delayed, and in hand, and when the oldest that is none of these was stored."""
    total = sum(max(0, ends[place] - book.low - _below(book.settled, ends[place])) for place, book in books.items())
    delayed = sum(mark.due > now for book in books.values() for mark in book.marks.values())
    oldest: list[int] = []
    for place, book in books.items():
        taken = out.get(place, frozenset())
        for record in records.get(place, ()):
            if book.is_settled(record.offset):
                continue
            if (record.read.message.not_before or 0) > now:
                delayed += 1
            elif record.offset not in taken and book.due(record.offset) <= now:
                oldest.append(record.read.stored_at)
    return total, delayed, sum(map(len, out.values())), min(oldest, default=None)


def _below(settled: Collection[int], end: int) -> int:
    return sum(offset < end for offset in settled)
