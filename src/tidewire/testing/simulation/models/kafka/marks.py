"""What a member knows of one partition it has: a character for each offset above the watermark, and what waits.

The text goes with every commit: ``~`` is done, a capital is handed out, any other is not, and which letter says at
which attempt. Whoever takes the partition over reads from it what its last owner had in hand.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from tidewire.testing.simulation.models.intake import Arrivals
from tidewire.testing.simulation.models.kafka.groups import Committed, Place
from tidewire.testing.simulation.models.kafka.logs import Record

__all__ = ["Marks"]

_DONE = "~"
_ATTEMPTS_MAX = 25
_IDLE, _SUSPECT, _OUT = ord("a") - 1, ord("!") - 1, ord("A") - 1
"""One below the characters for the first attempt: not handed out, the same of a suspect, handed out."""


class Marks:
    """One partition, as its owner knows it. *base* is the watermark: all below it is done."""

    def __init__(self, place: Place, committed: Committed, *, text_max: int, arrivals: Arrivals) -> None:
        self.place = place
        self.arrivals = arrivals
        self.base, text = committed
        self.next = self.base
        self.window = text_max
        self.attempts: dict[int, int] = {}
        self.suspects: set[int] = set()
        self.done: set[int] = set()
        self.out: dict[int, Record] = {}
        self.changed = False
        self.unsure: set[int] = set()  # settled, and not known to be committed
        self._returned: list[tuple[int, Record]] = []  # a heap: what comes back keeps its order
        self._waiting: list[tuple[int, int, Record]] = []  # a heap by the time it is due
        self._fresh: deque[Record] = deque()
        for offset, mark in enumerate(text, self.base):
            self._recall(offset, mark)

    def _recall(self, offset: int, mark: str) -> None:
        if mark == _DONE:
            self.done.add(offset)
        elif "A" <= mark <= "Z":  # its last owner had it in hand, and did not say what became of it
            self.attempts[offset] = ord(mark) - _OUT + 1
            self.suspects.add(offset)
            self.changed = True
        elif mark < "A":
            self.attempts[offset] = ord(mark) - _SUSPECT
            self.suspects.add(offset)
        elif mark != "a":
            self.attempts[offset] = ord(mark) - _IDLE

    def committed(self) -> Committed:
        """Return what to commit."""
        while self.base in self.done:
            self.done.discard(self.base)
            self.base += 1
        known = [*self.done, *self.attempts, *self.out]
        text = "".join(self._mark(offset) for offset in range(self.base, max(known, default=self.base - 1) + 1))
        return self.base, text

    def _mark(self, offset: int) -> str:
        if offset in self.done:
            return _DONE
        attempt = min(self.attempts.get(offset, 1), _ATTEMPTS_MAX)
        if offset in self.out:
            return chr(_OUT + attempt)
        return chr((_SUSPECT if offset in self.suspects else _IDLE) + attempt)

    def confirmed(self, committed: Committed) -> None:
        """Hear that this was stored: what is settled in it is settled for good."""
        base, text = committed
        self.unsure = {
            one for one in self.unsure if one >= base and (one - base >= len(text) or text[one - base] != _DONE)
        }

    @property
    def unsettled(self) -> int:
        """How many are out, or settled and not known to be committed."""
        return len(self.out) + len(self.unsure)

    # --- reading ----------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many offsets more the text has room for."""
        return self.base + self.window - self.next

    def fetched(self, records: Sequence[Record]) -> None:
        """Take records in, as far as there is room; an offset without a record is done."""
        for record in records:
            if record.offset >= self.base + self.window:
                break
            if record.offset < self.next:
                continue
            self.done.update(range(max(self.next, self.base), record.offset))
            self.next = record.offset + 1
            if record.offset >= self.base and record.offset not in self.done:
                self._fresh.append(record)

    def take(self, limit: int, now: int) -> list[Record]:
        """Hand out up to *limit* that are due at *now*: what came back first, then what was never out."""
        found: list[Record] = []
        while self._waiting and self._waiting[0][0] <= now:
            _, offset, record = heapq.heappop(self._waiting)
            heapq.heappush(self._returned, (offset, record))
        while self._returned and len(found) < limit:
            found.append(heapq.heappop(self._returned)[1])
        while self._fresh and len(found) < limit:
            record = self._fresh.popleft()
            due = _due_at(record)
            if due > now:
                heapq.heappush(self._waiting, (due, record.offset, record))
            else:
                found.append(record)
        for record in found:
            self.out[record.offset] = record
            if record.draft.attempt > 1:
                self.attempts.setdefault(record.offset, record.draft.attempt)
        self.changed |= bool(found)
        return found

    @property
    def hungry(self) -> bool:
        """Whether more should be fetched: nothing is there to hand out, and the text has room."""
        return not self._fresh and not self._returned and self.room > 0

    def due(self) -> int | None:
        """Return when the next of those that wait is due."""
        return self._waiting[0][0] if self._waiting else None

    def stuck(self) -> Record | None:
        """Take out what waits for its time at the watermark while the text is full: it must make room."""
        if self.room > 0:
            return None
        for item in self._waiting:
            if item[1] == self.base:
                self._waiting.remove(item)
                heapq.heapify(self._waiting)
                return item[2]
        return None

    def wait(self, record: Record) -> None:
        """Put back what was `stuck` and could not make room."""
        heapq.heappush(self._waiting, (_due_at(record), record.offset, record))

    # --- settling ---------------------------------------------------------------------------------------------

    def settle(self, offset: int) -> None:
        """Be done with what is out, or with what was taken out as stuck."""
        if self.out.pop(offset, None) is not None:
            self.unsure.add(offset)
        self.attempts.pop(offset, None)
        self.suspects.discard(offset)
        self.done.add(offset)
        self.changed = True

    def give_back(self, offset: int, *, counted: bool) -> None:
        """Take back what is out; it keeps its place in the order."""
        record = self.out.pop(offset)
        if counted:
            self.attempts[offset] = self.attempts.get(offset, 1) + 1
        heapq.heappush(self._returned, (offset, record))
        self.changed = True

    def give_all_back(self) -> None:
        """Take back all that is out, as nobody's failure."""
        for offset in list(self.out):
            self.give_back(offset, counted=False)


def _due_at(record: Record) -> int:
    """Return when a record may be handed out."""
    message = record.draft.message
    return 0 if message is None else message.not_before or 0
