"""How far a group is in one partition: pure, and small enough to be committed with the offset.

The offset that is committed is the first unsettled one. What is settled above it, how often what is not has failed,
what waits for a time, and up to where the owner may have handed out stand in the commit's metadata, of which a broker
takes 4096 bytes.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable

import msgspec

__all__ = ["METADATA_MAX", "WINDOW", "Mark", "Progress", "Saved", "read_saved"]

METADATA_MAX = 4_000
WINDOW = 20_000
"""So far apart may the first unsettled offset and the last one handed out be: what the metadata can hold."""
_CRASHES_MAX = 16


class Mark(msgspec.Struct, array_like=True, gc=False):
    """What is known of one unsettled offset: how often it was released as a failure, and when it is due (µs, or 0)."""

    failures: int = 0
    due: int = 0


class Saved(msgspec.Struct, omit_defaults=True, rename={"epoch": "e", "open": "o", "ceiling": "c", "marks": "m",
                                                        "crashes": "x", "bits": "b"}):  # fmt: skip
    """What is written into the metadata. *open*: an owner may have handed out below *ceiling*, and has not said how it
    ended. *bits*: what is settled from the committed offset on. *crashes*: ceilings of owners that vanished."""

    epoch: int = 0
    open: bool = False
    ceiling: int = 0
    marks: dict[int, Mark] = {}
    crashes: list[int] = []
    bits: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Saved).decode


def read_saved(metadata: str | None) -> Saved:
    """Return what stands in a commit's metadata; somebody else's, or damaged, counts as nothing."""
    if not metadata or not metadata.startswith("{"):
        return Saved()
    try:
        return _decode(metadata)
    except (msgspec.MsgspecError, RecursionError):
        return Saved()


class Progress:
    """The books of one partition for one owner. *low* is the first unsettled offset."""

    __slots__ = ("ceiling", "crashes", "high", "low", "marks", "settled")

    def __init__(self, low: int, saved: Saved) -> None:
        self.low = low
        self.settled: set[int] = set(_offsets(saved.bits, low))
        self.marks = {offset: mark for offset, mark in saved.marks.items() if offset >= low}
        self.crashes = [ceiling for ceiling in saved.crashes if ceiling > low]
        self.high = low
        self.ceiling = low
        if saved.open and saved.ceiling > low:  # the owner before us has not said goodbye
            self.crashes = [*self.crashes, saved.ceiling][-_CRASHES_MAX:]
        self._advance()

    def is_settled(self, offset: int) -> bool:
        """Whether *offset* is settled."""
        return offset < self.low or offset in self.settled

    def attempt(self, offset: int) -> int:
        """Return how often *offset* has been tried, this time included."""
        mark = self.marks.get(offset)
        return 1 + (mark.failures if mark is not None else 0) + sum(offset < ceiling for ceiling in self.crashes)

    def suspect(self, offset: int) -> bool:
        """Whether an owner vanished that may have had *offset* in hand."""
        return any(offset < ceiling for ceiling in self.crashes)

    def due(self, offset: int) -> int:
        """Return when *offset* may be handed out again, or 0."""
        mark = self.marks.get(offset)
        return 0 if mark is None else mark.due

    def settle(self, offsets: Iterable[int]) -> None:
        """Settle *offsets*; twice is harmless."""
        low, settled, marks = self.low, self.settled, self.marks
        for offset in offsets:
            if offset == low:
                low += 1
            elif offset > low:
                settled.add(offset)
            if marks:
                marks.pop(offset, None)
        self.low = low
        self._advance()

    def skip(self, start: int, end: int) -> None:
        """There is nothing at the offsets from *start* to *end* - 1."""
        if start <= self.low:
            self.low = max(self.low, end)
        else:
            self.settled.update(range(start, end))
        self._advance()

    def failed(self, offset: int, *, counted: bool, due: int) -> None:
        """*offset* was given back: as a failure if *counted*, to wait until *due*."""
        mark = self.marks.setdefault(offset, Mark())
        mark.failures += counted
        mark.due = due
        if not mark.failures and not due:
            del self.marks[offset]

    def saved(self, epoch: int, *, open_: bool, slack: int) -> tuple[int, str]:
        """Return the offset to commit and its metadata. *slack*: how many more may be handed out before the next one.

        What does not fit is left out: first counts of failures, then what is settled furthest ahead, which then comes
        again after a crash.
        """
        ceiling = max(self.high, self.low) + slack
        saved = Saved(epoch, open_, ceiling if open_ else 0, self.marks, self.crashes, _bits(self.settled, self.low))
        text = _encode(saved).decode()
        if len(text) > METADATA_MAX:
            saved.marks = {offset: mark for offset, mark in self.marks.items() if mark.due}
            text = _encode(saved).decode()
        part = sorted(self.settled)
        while len(text) > METADATA_MAX and (part or saved.marks):
            part = part[: len(part) // 2]
            saved.bits = _bits(part, self.low)
            saved.marks = {} if not part else saved.marks
            text = _encode(saved).decode()
        return self.low, text

    def _advance(self) -> None:
        settled = self.settled
        while self.low in settled:
            settled.discard(self.low)
            self.marks.pop(self.low, None)
            self.low += 1
        if self.crashes:
            self.crashes = [ceiling for ceiling in self.crashes if ceiling > self.low]


def _bits(settled: Iterable[int], low: int) -> str:
    number = 0
    offsets = list(settled)
    if not offsets:
        return ""
    array = bytearray((max(offsets) - low) // 8 + 1)
    for offset in offsets:
        number = offset - low
        array[number >> 3] |= 1 << (number & 7)
    return base64.b64encode(zlib.compress(bytes(array), 6)).decode()


def _offsets(bits: str, low: int) -> list[int]:
    if not bits:
        return []
    try:
        decompressor = zlib.decompressobj()
        array = decompressor.decompress(base64.b64decode(bits, validate=True), 1 << 16)
    except (binascii.Error, ValueError, zlib.error):
        return []
    return [low + 8 * place + bit for place, byte in enumerate(array) if byte for bit in range(8) if byte >> bit & 1]
