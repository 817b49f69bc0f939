"""Which outbox rows may leave now: of each key one publish is on its way at a time, and in order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from tidewire.model import Pending
from tidewire.rules.letters import topic_of

__all__ = [
    "BEHIND",
    "CLAIM_BYTES_MAX",
    "Flight",
    "Look",
    "Place",
    "Traffic",
    "last_page",
    "places_of",
    "relay_name",
    "strangers",
    "up_to",
]

BEHIND = "waits behind a quarantined row of its key"
"""The `Stuck.detail` of a row that no broker has refused."""

CLAIM_BYTES_MAX = 4 * 1024 * 1024
"""A claim ends behind the row with which the bodies of its rows reach this."""

Place: TypeAlias = str | tuple[str, str] | int
"""What can rest: a topic, a (topic, key), or a row."""


_TO = " to "


def relay_name(member: str, broker: str) -> str:
    """Return the owner by which the relay of *member* takes leases: it says to which *broker* it publishes, too."""
    return f"{member}{_TO}{broker}" if broker else member


def strangers(owners: Iterable[str], own: str) -> list[str]:
    """Return those of *owners*, the names of relays, that say another broker than *own* does."""
    broker = own.partition(_TO)[2]
    return [owner for owner in owners if broker and owner.partition(_TO)[2] not in ("", broker)]


def places_of(row: Pending) -> tuple[Place, ...]:
    """Return the places that *row* is in."""
    topic, key = topic_of(row.message.to), row.message.key
    return (topic, row.row) if key is None else (topic, (topic, key), row.row)


def up_to(rows: Iterable[Pending], limit: int) -> list[Pending]:
    """Take what one claim returns: *limit* rows, or fewer once their bodies reach `CLAIM_BYTES_MAX`."""
    taken: list[Pending] = []
    size = 0
    for row in rows:
        if len(taken) >= limit or size >= CLAIM_BYTES_MAX:
            break
        taken.append(row)
        size += len(row.message.body)
    return taken


def last_page(rows: Sequence[Pending], limit: int) -> bool:
    """Whether nothing more was due behind *rows*, which a claim of *limit* rows returned."""
    return len(rows) < limit and sum(len(row.message.body) for row in rows) < CLAIM_BYTES_MAX


class Traffic:
    """What is on its way, at most *rows_max* rows and *flights_max* batches, and what rests for a while.

    A *flight* is one batch; its rows are on their way until they are marked done, its keys only until the broker
    has answered. Times are seconds of any one clock.
    """

    def __init__(self, *, rows_max: int, flights_max: int) -> None:
        self._rows_max = rows_max
        self._flights_max = flights_max
        self._flights = 0
        self._keys: set[Place] = set()
        self._rests: dict[Place, float] = {}
        self.rows: set[int] = set()

    @property
    def room(self) -> int:
        """How many more rows may leave now."""
        return max(0, self._rows_max - len(self.rows)) if self._flights < self._flights_max else 0

    def depart(self, rows: Sequence[Pending]) -> Flight:
        """Note that *rows* leave as one flight, and return it."""
        self._flights += 1
        self.rows.update(row.row for row in rows)
        self._keys.update(_keys(rows))
        return Flight(rows)

    def answered(self, flight: Flight) -> None:
        """Note that the broker has answered for all of *flight*: later rows of its keys may follow."""
        if not flight.answered:
            flight.answered = True
            self._keys.difference_update(_keys(flight.rows))

    def landed(self, flight: Flight) -> None:
        """Note that *flight* has ended, whatever became of it."""
        self._flights -= 1
        self.rows.difference_update(row.row for row in flight.rows)
        self.answered(flight)

    def rest(self, place: Place, until: float) -> None:
        """Let nothing of *place* leave before *until*."""
        self._rests[place] = max(until, self._rests.get(place, until))

    def rests(self, place: Place, now: float) -> bool:
        """Whether *place* itself rests."""
        return self._rests.get(place, now) > now

    def resting(self, now: float) -> float | None:
        """Return how many seconds the first rest still takes, or None: nothing rests. Forgets those that are over."""
        for place in [place for place, until in self._rests.items() if until <= now]:
            del self._rests[place]
        return min(self._rests.values()) - now if self._rests else None

    def look(self, now: float) -> Look:
        """Begin to look for what may leave. Call it before the rows are read: what ends meanwhile ends too late."""
        self.resting(now)
        return Look({*self._keys, *self._rests})


class Flight:
    """Rows that left together; once it is *answered*, its keys may be another's."""

    __slots__ = ("answered", "rows")

    def __init__(self, rows: Sequence[Pending]) -> None:
        self.rows = rows
        self.answered = False


class Look:
    """One pass over the backlog, page by page from its beginning.

    What was passed over once is passed over to the end of the pass, or a later row would overtake it.
    """

    def __init__(self, closed: set[Place]) -> None:
        self._closed = closed
        self.passed_over = False

    def choose(self, rows: Iterable[Pending]) -> list[Pending]:
        """Return those of the next *rows* that may leave, in their order."""
        chosen: list[Pending] = []
        for row in rows:
            if self._closed.isdisjoint(places_of(row)):
                chosen.append(row)
            else:
                self.passed_over = True
        return chosen

    def depart(self, rows: Sequence[Pending]) -> None:
        """Close the keys of *rows*, which have left: what follows of them waits for the broker's answer."""
        self._closed.update(_keys(rows))


def _keys(rows: Iterable[Pending]) -> list[Place]:
    return [(topic_of(row.message.to), row.message.key) for row in rows if row.message.key is not None]
