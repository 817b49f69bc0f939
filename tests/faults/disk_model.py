"""What a disk may hold after a power loss: content per file, names per directory; both lag behind what was asked.

Until a sync, nothing, everything, any prefix, any subset, or any 512-byte sectors of what was written may be there.
A file that was not synced may be missing, short or have holes; a name that was not synced may be missing or be old.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from disk_trace import Op

SECTOR = 512
DIRECTORY = -1
State = dict[str, bytes]


class Pending(NamedTuple):
    """What is asked of the disk and not certain: a write or truncate of *inode*, or (*name*) a name in *directory*."""

    order: int
    inode: int
    at: int = 0
    data: bytes | None = None
    directory: str = ""
    name: str = ""


class Disk:
    """Follows a trace. Starts from *files*, which are durable."""

    def __init__(self, root: str, files: State) -> None:
        self.root = root
        self._live = {path: number for number, path in enumerate(files)}
        self._names: dict[str, int] = dict(self._live)
        self._data = {number: bytearray(files[path]) for path, number in self._live.items()}
        self._now = {number: bytearray(data) for number, data in self._data.items()}
        self._next = len(files)
        self._order = 0
        self._asked: dict[tuple[str, str], int] = {}
        self.pending: list[Pending] = []

    def do(self, op: Op) -> bool:
        """Take one step; True if another state became possible.

        Raises:
            ValueError: a call this model does not know was made on a file it watches.
        """
        if op.kind.startswith("unknown"):
            raise ValueError(f"{op.kind} on {op.path}")
        self._order += 1
        match op.kind:
            case "create" if op.path not in self._live:
                self._appear(op.path, self._new_inode())
            case "mkdir" if op.path not in self._live:
                self._appear(op.path, DIRECTORY)
            case "unlink" if op.path in self._live:
                del self._live[op.path]
                self._name(op.path, None)
            case "rename":
                inode = self._live.pop(op.path)
                self._name(op.path, None)
                self._appear(op.other, inode)
            case "write" | "truncate" if op.path in self._live:
                inode = self._live[op.path]
                change = Pending(self._order, inode, op.at, op.data if op.kind == "write" else None)
                put(self._now[inode], change)
                self.pending.append(change)
            case "syncing":
                self._asked[op.mark, op.path] = self._order
                return False
            case "sync":
                self._sync(op)
            case _:
                return False
        return True

    def exists(self, path: str) -> bool:
        """Whether a process finds *path* now."""
        return path in self._live

    def live(self) -> State:
        """Return what a process sees now: what a ``kill -9`` leaves."""
        return {path: bytes(self._now[inode]) for path, inode in self._live.items() if inode != DIRECTORY}

    def none(self) -> State:
        """Return what is certain."""
        return self._with(())

    def crashes(self, chance: random.Random, count: int) -> Iterator[State]:
        """Return states that a power loss may leave: nothing and everything first, then up to *count* others."""
        pending = self.pending
        yield self._with(())
        if not pending:
            return
        yield self._with(pending)
        for _ in range(count):
            match chance.randrange(5):
                case 0:
                    yield self._with(pending[: chance.randint(0, len(pending))])
                case 1:
                    left_out = chance.randrange(len(pending))
                    yield self._with([*pending[:left_out], *pending[left_out + 1 :]])
                case 2:
                    yield self._with([one for one in pending if chance.random() < 0.5])
                case 3:
                    cut = chance.randrange(len(pending))
                    yield self._with([*pending[:cut], *torn(pending[cut : cut + 1], chance)])
                case _:
                    yield self._with(torn(pending, chance))

    def _with(self, chosen: Sequence[Pending]) -> State:
        changed = {one.inode for one in chosen if not one.name}
        data = {inode: bytearray(self._data.get(inode, b"")) for inode in changed}
        names = dict(self._names)
        for one in chosen:
            if one.name:
                if one.inode == REMOVED:
                    names.pop(one.name, None)
                else:
                    names[one.name] = one.inode
            else:
                put(data[one.inode], one)
        return {
            path: bytes(data[inode] if inode in data else self._data.get(inode, b""))
            for path, inode in names.items()
            if inode != DIRECTORY and self._reachable(path, names)
        }

    def _reachable(self, path: str, names: dict[str, int]) -> bool:
        parent = os.path.dirname(path)
        while parent != self.root:
            if parent not in names:
                return False
            parent = os.path.dirname(parent)
        return True

    def _sync(self, op: Op) -> None:
        reach = self._asked.pop((op.mark, op.path))
        inode = self._live.get(op.path)
        rest: list[Pending] = []
        for one in self.pending:
            if one.order > reach:
                rest.append(one)
            elif one.name and one.directory == op.path:
                if one.inode == REMOVED:
                    self._names.pop(one.name, None)
                else:
                    self._names[one.name] = one.inode
            elif not one.name and one.inode == inode:
                put(self._data.setdefault(one.inode, bytearray()), one)
            else:
                rest.append(one)
        self.pending = rest

    def _new_inode(self) -> int:
        inode, self._next = self._next, self._next + 1
        self._data[inode], self._now[inode] = bytearray(), bytearray()
        return inode

    def _appear(self, path: str, inode: int) -> None:
        self._live[path] = inode
        self._name(path, inode)

    def _name(self, path: str, inode: int | None) -> None:
        where = os.path.dirname(path)
        number = REMOVED if inode is None else inode
        self.pending.append(Pending(self._order, number, directory=where, name=path))


REMOVED = -2


def put(data: bytearray, change: Pending) -> None:
    """Apply a write, or (without data) a truncate."""
    if change.data is None:
        del data[change.at :]
        data.extend(bytes(change.at - len(data)))
        return
    data.extend(bytes(max(0, change.at - len(data))))
    data[change.at : change.at + len(change.data)] = change.data


def torn(changes: Sequence[Pending], chance: random.Random) -> list[Pending]:
    """Return *changes* with only some sectors of each write, and only some of the others."""
    left: list[Pending] = []
    for one in changes:
        if one.data is None:
            if chance.random() < 0.5:
                left.append(one)
            continue
        at = one.at
        end = one.at + len(one.data)
        while at < end:
            cut = min(end, at // SECTOR * SECTOR + SECTOR)
            if chance.random() < 0.5:
                left.append(one._replace(at=at, data=one.data[at - one.at : cut - one.at]))
            at = cut
    return left
