"""The outbox in PostgreSQL, as its writers see it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from zlib import crc32

import msgspec

from tidewire.kit.postgres.text import given, kept
from tidewire.kit.postgres.wire import Statement
from tidewire.model import Message, Stuck, Topic
from tidewire.protocols import Clock, Unit
from tidewire.stores.postgres.access import Access
from tidewire.stores.postgres.unit import Core, own_unit

__all__ = ["COLUMNS", "PostgresOutbox", "message_of"]

_PARTITIONS = 64
COLUMNS = "id, source, aggregatetype, aggregateid, type, headers, payload"
_encode = msgspec.json.Encoder().encode
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode
_VALUES = (
    "unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[]{more}) "
    "WITH ORDINALITY AS u (part, id, source, aggregatetype, aggregateid, type, headers, payload{names}, place)"
)


class PostgresOutbox:
    """See `tidewire.protocols.Outbox`."""

    def __init__(self, access: Access, clock: Clock, *, poll: timedelta) -> None:
        self._access = access
        self._clock = clock
        self._poll = poll.total_seconds()
        self._committed = asyncio.Event()
        self._core: Core | None = None
        ready, delayed, refused = (access.table(name) for name in ("outbox", "outbox_delayed", "outbox_refused"))
        columns = f"part, {COLUMNS}"
        self._insert_one = (
            f"INSERT INTO {ready} ({columns}) VALUES ($1::smallint, $2::text, $3::text, $4::text, $5::text, $6::text, "
            "$7::text, $8::bytea)"
        )
        self._insert = (
            f"INSERT INTO {ready} ({columns}) SELECT {columns} FROM {_VALUES.format(more='', names='')} ORDER BY place"
        )
        values = _VALUES.format(more=", $9::bigint[]", names=", due")
        self._insert_delayed = (
            f"INSERT INTO {delayed} ({columns}, due) SELECT {columns}, due FROM {values} ORDER BY place"
        )
        self._has_rows = (
            f"SELECT EXISTS (SELECT 1 FROM {ready}) OR EXISTS (SELECT 1 FROM {delayed} "
            "WHERE due <= extract(epoch FROM clock_timestamp()) * 1000000)"
        )
        self._count = (
            f"SELECT (SELECT count(*) FROM {ready}) + (SELECT count(*) FROM {delayed}), "
            f"(SELECT count(*) FROM {refused})"
        )
        self._stuck = (
            f'SELECT "row", attempts, detail, at, {COLUMNS} FROM {refused} WHERE "row" > $1::bigint '
            'ORDER BY "row" LIMIT $2::bigint'
        )
        self._requeue = (
            f'WITH gone AS (DELETE FROM {refused} WHERE "row" = ANY($1::bigint[]) RETURNING *) '
            f'INSERT INTO {ready} ({columns}) SELECT {columns} FROM gone ORDER BY "row"'
        )

    def attach(self, core: Core) -> None:
        """Say whose units are ours."""
        self._core = core

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def put(self, unit: Unit, messages: Sequence[Message]) -> None:
        """Insert rows with the seal of *unit*, in order."""
        assert self._core is not None, "attached when the store was opened"
        core = self._core
        own = own_unit(unit, lambda: core)
        self.statements(messages)  # what cannot be a row is refused now
        own.leave(messages)

    def statements(self, messages: Sequence[Message]) -> Sequence[Statement]:
        """Return what inserts *messages*: one statement for what may leave now, one for what may not."""
        now = self._clock.now_us()
        at_once = [_columns(one) for one in messages if one.not_before is None or one.not_before <= now]
        later = [(*_columns(one), one.not_before) for one in messages if (one.not_before or 0) > now]
        done: list[Statement] = []
        if len(at_once) == 1:
            done.append((self._insert_one, at_once[0]))
        elif at_once:
            done.append((self._insert, [list(column) for column in zip(*at_once, strict=True)]))
        if later:
            done.append((self._insert_delayed, [list(column) for column in zip(*later, strict=True)]))
        return done

    def written(self, messages: Sequence[Message]) -> None:
        """Wake the relay."""
        self._committed.set()

    async def wait(self, longest: timedelta) -> bool:
        """Wait for a commit of this process, or for rows of others, looked for every *poll*."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + longest.total_seconds()
        while not self._committed.is_set():
            if (await self._access.run("looking for events", (self._has_rows, ()))).rows()[0][0]:
                break
            rest = min(deadline - loop.time(), self._poll)
            if rest <= 0:
                return False
            try:
                async with asyncio.timeout(rest):
                    await self._committed.wait()
            except TimeoutError:
                continue
        self._committed.clear()
        return True

    async def count(self) -> tuple[int, int]:
        """Return how many rows are pending (delayed ones included) and how many are quarantined."""
        pending, refused = (await self._access.run("counting events", (self._count, ()))).rows()[0]
        return int(pending), int(refused)

    async def stuck(self, *, after: int = 0, limit: int = 100) -> Sequence[Stuck]:
        """Return quarantined rows."""
        rows = (await self._access.run("reading quarantined events", (self._stuck, (after, limit)))).rows()
        return [Stuck(row, message_of(columns), attempts, detail, at) for row, attempts, detail, at, *columns in rows]

    async def requeue(self, rows: Sequence[int]) -> int:
        """Move quarantined rows behind what is pending."""
        return (await self._access.run("requeueing events", (self._requeue, ([*rows],)))).count()


def _part_of(message: Message) -> int:
    """Return the partition of a message: that of its key, or of its id where it has none."""
    assert isinstance(message.to, Topic)
    text = message.id if message.key is None else f"{message.to.name}\0{message.key}"
    return crc32(text.encode()) % _PARTITIONS


def message_of(columns: Sequence[object]) -> Message:
    """Return the message that a row holds."""
    event_id, source, topic, key, _, headers, payload = columns
    return Message(
        Topic(given(str(topic))),
        given(str(event_id)),
        given(str(source)),
        None if key is None else given(str(key)),
        _decode_headers(str(headers)),
        bytes(payload),  # type: ignore[call-overload]
    )


def _columns(message: Message) -> tuple[object, ...]:
    assert isinstance(message.to, Topic)
    return (
        _part_of(message),
        kept(message.id),
        kept(message.source),
        kept(message.to.name),
        None if message.key is None else kept(message.key),
        kept(message.headers.get("ce-type", "")),
        _encode(message.headers).decode(),
        message.body,
    )
