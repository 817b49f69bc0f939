"""Dead letters in files: one JSON object a line, every header, the body in base64, and a digest of it all."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.model import Act, DeadChannel, Message
from tidewire.operations.audit import Operator, ended, ledger_of
from tidewire.operations.letters import channels_of, inspector_of, scan
from tidewire.operations.selection import Letter, Selection
from tidewire.protocols import Inspector, Transport

__all__ = ["Line", "export_letters", "import_letters", "line_of", "read_file"]

FORMAT = 1
LINE_BYTES_MAX = 8 << 20
CHUNK = 10_000
CHUNK_BYTES_MAX = 32 << 20
BATCH = 100
DAMAGED_SHOWN_MAX = 20
_encode = msgspec.json.Encoder().encode


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an export. *position* and *stored_at* say where the letter lay; an import gives it new ones."""

    format: int
    topic: str
    group: str
    id: str
    source: str
    key: str | None
    headers: dict[str, str]
    body: str
    digest: str
    position: int | str | None = None
    stored_at: int | None = None

    def letter(self) -> Letter:
        """Return the letter.

        Raises:
            ValueError: the line is of another format, or is not what was written; says which.
        """
        if self.format != FORMAT:
            raise ValueError(f"format {self.format} is not known to this version, which reads format {FORMAT}")
        try:
            body = base64.b64decode(self.body, validate=True)
        except binascii.Error as error:
            raise ValueError(f"the body is not base64: {error}") from None
        channel = DeadChannel(self.topic, self.group)
        letter = Letter(Message(channel, self.id, self.source, self.key, self.headers, body), self.position or 0)
        if letter.digest() != self.digest:
            raise ValueError("its digest is of something else: the line was changed")
        return letter


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What an import did: *added* letters are confirmed in their dead channels, *there* were in them already."""

    act_id: str
    lines: int
    added: int
    there: int

    @property
    def changed(self) -> bool:
        """Whether anything is other than before."""
        return self.added > 0


def line_of(letter: Letter) -> bytes:
    """Return *letter* as one line of an export, its end included."""
    message, channel = letter.message, letter.channel
    line = Line(
        format=FORMAT,
        topic=channel.topic,
        group=channel.group,
        id=message.id,
        source=message.source,
        key=message.key,
        headers=dict(message.headers),
        body=base64.b64encode(message.body).decode(),
        digest=letter.digest(),
        position=letter.position,
        stored_at=letter.stored_at,
    )
    return _encode(line) + b"\n"


_decode = msgspec.json.Decoder(Line).decode


async def export_letters(transport: Transport, selection: Selection, path: Path) -> int:
    """Write the letters of *selection* to *path*, readable for its owner only, and return how many they are.

    The file appears whole, or, if anything fails, not at all; one that is there is replaced. The letters stay in
    their dead channels.

    Raises:
        ConfigurationError: the file cannot be written, the broker cannot be looked into, or there is no such topic
            or group.
    """
    inspector = inspector_of(transport)
    channels = await channels_of(inspector, selection)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        return await _write(inspector, channels, selection, path=path, beside=beside)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}", hint="give a file in a folder of yours"
        ) from error
    finally:
        with suppress(OSError):  # it was put in place, or never made
            beside.unlink()


async def _write(
    inspector: Inspector, channels: Sequence[DeadChannel], selection: Selection, *, path: Path, beside: Path
) -> int:
    count = 0
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for channel in channels:
            async for lines in _pages(inspector, channel, selection):
                count += len(lines)
                await asyncio.to_thread(file.writelines, lines)
        await asyncio.to_thread(_synced, file)
    await asyncio.to_thread(_put_in_place, beside, path)
    return count


async def _pages(inspector: Inspector, channel: DeadChannel, selection: Selection) -> AsyncGenerator[list[bytes]]:
    lines: list[bytes] = []
    async for letter in scan(inspector, channel):
        if selection.matches(letter):
            lines.append(line_of(letter))
            if len(lines) >= BATCH:
                yield lines
                lines = []
    if lines:
        yield lines


def _synced(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _put_in_place(beside: Path, path: Path) -> None:
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --- import ---------------------------------------------------------------------------------------------------


async def read_file(path: Path) -> dict[DeadChannel, int]:
    """Check every line of the export at *path* and return how many letters it has for each dead channel.

    Raises:
        ConfigurationError: it cannot be read, or lines are damaged; names the first 20 with their numbers.
    """
    counts: dict[DeadChannel, int] = {}
    damaged: list[str] = []

    def check() -> None:
        for number, raw in _lines(path):
            try:
                channel = _letter(raw).channel
                counts[channel] = counts.get(channel, 0) + 1
            except ValueError as error:
                damaged.append(f"line {number}: {error}")
                if len(damaged) >= DAMAGED_SHOWN_MAX:
                    return

    await asyncio.to_thread(check)
    if damaged:
        raise ConfigurationError(
            f"{path} is damaged, so nothing was imported; " + "; ".join(damaged), hint="export the letters anew"
        )
    return counts


async def import_letters(transport: Transport, path: Path, *, by: Operator) -> Imported:
    """Put the letters of the export at *path* back into their dead channels, in the order of the file.

    Every line is checked before the first is imported. A letter that is in its dead channel already is skipped, so
    that an import can be repeated. Each batch is confirmed before the next.

    Raises:
        ConfigurationError: as `read_file`; a dead channel of the file is not of this broker; the broker refused one.
    """
    counts = await read_file(path)
    inspector = inspector_of(transport)
    await _check_channels(inspector, counts)
    total = sum(counts.values())
    act_id = by.ids.event_id()
    if not total:
        return Imported(act_id=act_id, lines=0, added=0, there=0)
    only = next(iter(counts)) if len(counts) == 1 else DeadChannel("", "")
    begun = Act(
        id=act_id, at=by.clock.now_us(), who=by.who, verb="import", topic=only.topic, group=only.group,
        state="begun", count=total,
    )  # fmt: skip
    await ledger_of(transport).note(begun)
    added = 0
    try:
        async for count in _added(transport, inspector, path):
            added += count
    except ConfigurationError as error:
        await ended(transport, begun, by=by, count=added, detail={"error": error.message}, failed=True)
        raise
    await ended(transport, begun, by=by, count=added, detail={"there": total - added})
    return Imported(act_id=act_id, lines=total, added=added, there=total - added)


async def _added(transport: Transport, inspector: Inspector, path: Path) -> AsyncGenerator[int]:
    """Publish what is not there, and give the number of letters of each batch that was confirmed."""
    lines = _lines(path)
    while chunk := await asyncio.to_thread(_chunk, lines):
        missing = await _missing(inspector, chunk)
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            receipts = await transport.publish([letter.message for _, letter in batch])
            yield sum(receipt.ok for receipt in receipts)
            for (number, _), receipt in zip(batch, receipts, strict=True):
                if not receipt.ok:
                    what = f"{receipt.status} {receipt.reason} {receipt.detail}".strip()
                    raise ConfigurationError(
                        f"{path}, line {number}: the broker did not take the letter: {what}",
                        hint="import the file again once that is mended: what is there is skipped",
                    )


async def _missing(inspector: Inspector, chunk: Sequence[tuple[int, Letter]]) -> list[tuple[int, Letter]]:
    """Return those of *chunk* that are not in their dead channels, each once."""
    found = {letter.digest(): (number, letter) for number, letter in reversed(chunk)}
    for channel in {letter.channel for _, letter in chunk}:
        async for there in scan(inspector, channel):
            found.pop(there.digest(), None)
    return sorted(found.values(), key=lambda numbered: numbered[0])


async def _check_channels(inspector: Inspector, counts: dict[DeadChannel, int]) -> None:
    known = {DeadChannel(info.topic, info.group) for info in await inspector.groups()}
    unknown = [f"group {channel.group!r} on topic {channel.topic!r}" for channel in counts if channel not in known]
    if unknown:
        raise ConfigurationError(
            f"this broker has no {', no '.join(unknown)}, so nothing was imported", hint="provision them first"
        )


def _chunk(lines: Iterator[tuple[int, bytes]]) -> list[tuple[int, Letter]]:
    """Return the next letters: at most 10,000, and no more than about 32 MiB of them."""
    chunk: list[tuple[int, Letter]] = []
    weight = 0
    for number, raw in lines:
        try:
            chunk.append((number, _letter(raw)))
        except ValueError as error:
            raise ConfigurationError(f"line {number} was changed while the file was imported: {error}") from None
        weight += len(raw)
        if len(chunk) >= CHUNK or weight >= CHUNK_BYTES_MAX:
            break
    return chunk


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Give every line that is not blank, with its number; one that is too long is cut, and so is no JSON."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES_MAX):
                number += 1
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}", hint="name a file that `export` wrote"
        ) from None


def _letter(raw: bytes) -> Letter:
    """Return the letter of one line.

    Raises:
        ValueError: it is damaged; says how.
    """
    try:
        return _decode(raw).letter()
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None
