"""A lane of a group: what is settled, what failed how often, who owns it, and what that member has in hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from directory_broker.files import Directory, Entry, read

__all__ = ["Group", "Lane", "Member", "save", "wanted"]


class Group(msgspec.Struct):
    """How a group began on a topic: *floor* is settled for it, *epoch* is what its lanes' epochs begin above."""

    start: str
    floor: int
    epoch: int


class Member(msgspec.Struct):
    """A member of a group. It is alive until *until* (ticks since *boot*), longer if it says so."""

    until: int
    boot: str
    joined: int
    topics: list[str]


class Cursor(msgspec.Struct):
    """What must not be lost: *counts* are failures and crashes of messages, *due* when a released one may come."""

    epoch: int
    floor: int
    settled: set[int] = msgspec.field(default_factory=set[int])
    counts: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict[int, tuple[int, int]])
    due: dict[int, int] = msgspec.field(default_factory=dict[int, int])


class Owner(msgspec.Struct):
    """What a power loss may take: then nobody owns the lane and nothing was handed out."""

    member: str = ""
    handed: set[int] = msgspec.field(default_factory=set[int])


class Lane:
    """The two files of lane *number*, read in a turn and written in the same one."""

    def __init__(self, directory: Directory, folder: Path, number: int) -> None:
        self._directory = directory
        self._path = folder / "lanes" / f"{number}.cursor"
        self.number = number
        group = msgspec.json.decode((folder / "group.json").read_bytes(), type=Group)
        cursor = read(self._path)
        self.cursor = Cursor(group.epoch, group.floor) if cursor is None else msgspec.json.decode(cursor, type=Cursor)
        self.owner = _owner(self._path.with_suffix(".owner"))
        self.gone: list[str] = []  # settled in the inbox channel

    def free(self, entry: Entry, now: int) -> bool:
        """Whether a message may be handed out now."""
        return self.unsettled(entry) and entry.position not in self.owner.handed and self.due(entry) <= now

    def unsettled(self, entry: Entry) -> bool:
        """Whether a message that lies here is still to be dealt with."""
        return entry.private or (entry.position > self.cursor.floor and entry.position not in self.cursor.settled)

    def due(self, entry: Entry) -> int:
        """Return when a message may be handed out."""
        return self.cursor.due.get(entry.position, 0)

    def attempt(self, entry: Entry) -> tuple[int, bool]:
        """Return the attempt of the next hand-out, and whether the message is a suspect."""
        failures, crashes = self.cursor.counts.get(entry.position, (0, 0))
        return 1 + failures + crashes, crashes > 0

    def ack(self, entry: Entry) -> None:
        """Settle a message: one in the inbox channel is this group's alone and goes."""
        self.owner.handed.discard(entry.position)
        self.cursor.counts.pop(entry.position, None)
        self.cursor.due.pop(entry.position, None)
        if entry.private:
            self.gone.append(entry.path)
        else:
            self.cursor.settled.add(entry.position)

    def release(self, entry: Entry, *, counted: bool, due: int) -> None:
        """Give a message back."""
        self.owner.handed.discard(entry.position)
        failures, crashes = self.cursor.counts.get(entry.position, (0, 0))
        if counted:
            self.cursor.counts[entry.position] = (failures + 1, crashes)
        if due:
            self.cursor.due[entry.position] = due

    def take(self, member: str, there: Iterable[Entry]) -> int:
        """Make *member* the owner, with a new epoch; what the last one died with in hand is counted."""
        self.give_up(there, crashed=bool(self.owner.member))
        self.cursor.epoch += 1
        self.owner.member = member
        return self.cursor.epoch

    def give_up(self, there: Iterable[Entry], *, crashed: bool) -> None:
        """Leave the lane to nobody, and what was handed out to the next owner."""
        for entry in there if crashed else ():
            if entry.lane == self.number and entry.position in self.owner.handed and self.unsettled(entry):
                failures, crashes = self.cursor.counts.get(entry.position, (0, 0))
                self.cursor.counts[entry.position] = (failures, crashes + 1)
        self.owner = Owner()

    def file(self, there: Iterable[Entry]) -> tuple[Path, bytes]:
        """Return the cursor as a file to be saved; *there* is what lies in the topic, so that the floor can rise."""
        for entry in there:
            if entry.lane == self.number and not entry.private and entry.position > self.cursor.floor:
                if entry.position not in self.cursor.settled:
                    break
                self.cursor.floor = entry.position
        self.cursor.settled = {position for position in self.cursor.settled if position > self.cursor.floor}
        return self._path, msgspec.json.encode(self.cursor)

    def save_owner(self) -> None:
        """Write down who has what, so that the next owner knows; costs no sync."""
        self._directory.note(self._path.with_suffix(".owner"), msgspec.json.encode(self.owner))


def save(directory: Directory, lanes: Sequence[tuple[Lane, Iterable[Entry]]]) -> None:
    """Write lanes down, each with what lies in its topic; only then what was settled in inbox channels goes."""
    directory.save([lane.file(there) for lane, there in lanes])
    for lane, _ in lanes:
        lane.save_owner()
        for path in lane.gone:
            os.unlink(path)
    for folder in {os.path.dirname(path) for lane, _ in lanes for path in lane.gone}:
        directory.sync(Path(folder))


def _owner(path: Path) -> Owner:
    try:
        return msgspec.json.decode(read(path) or b"{}", type=Owner)
    except msgspec.DecodeError:
        return Owner()  # the file was not synced, and the power went


def wanted(owners: Sequence[str], readers: Sequence[str], me: str) -> set[int]:
    """Return the lanes of a topic that *me* should have: *owners* by lane, empty where a lane is free.

    Shares are even, and who has a lane keeps it where that does no harm to this. *readers* are the oldest first.
    """
    share, more = divmod(len(owners), len(readers))
    ranked = sorted(readers, key=lambda name: -owners.count(name))  # stable: of equals the oldest
    mine = [number for number, owner in enumerate(owners) if owner == me]
    free = [number for number, owner in enumerate(owners) if not owner]
    return set([*mine, *free][: share + (ranked.index(me) < more)])
