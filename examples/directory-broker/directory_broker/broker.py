"""What may be stored and where: provisioning, publishing, delays, retention. Everything here blocks, in a turn."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from heapq import merge
from pathlib import Path
from typing import Literal

import msgspec

from directory_broker.files import NAME, Directory, Entry, encode, entries, read, size_of
from directory_broker.lanes import Group, Lane
from tidewire.clock import SystemClock
from tidewire.model import Address, Change, GroupSpec, Message, Receipt, Topic, TopicSpec

__all__ = ["BOOT", "MESSAGE_BYTES_MAX", "Broker"]

_BOOT = Path("/proc/sys/kernel/random/boot_id")
BOOT = _BOOT.read_text().strip() if _BOOT.exists() else "-"

MESSAGE_BYTES_MAX = 1 << 20
TRIM_EVERY = 16
"""A topic looks for what its retention lets go whenever so many messages have come."""


class LetGo(msgspec.Struct):
    """The newest message that retention has removed from a topic."""

    position: int = 0
    stored_at: int = 0


class Broker:
    """Topics and groups in a directory."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.clock = SystemClock()
        self._turns = 0  # messages without a key go round the lanes

    # --- what there is ----------------------------------------------------------------------------------------

    def spec(self, topic: str) -> TopicSpec | None:
        """Return a topic as it was provisioned, or None."""
        data = read(self.directory.topic(topic) / "topic.json") if NAME.match(topic) else None
        return None if data is None else msgspec.json.decode(data, type=TopicSpec)

    def has_group(self, topic: str, group: str) -> bool:
        """Whether a group reads a topic."""
        return bool(NAME.match(group)) and (self.directory.group(topic, group) / "group.json").exists()

    def groups(self, topic: str) -> list[str]:
        """Return the groups of a topic, by name."""
        folder = self.directory.topic(topic) / "groups"
        return sorted(name for name in os.listdir(folder) if self.has_group(topic, name))

    def counter(self, topic: str) -> int:
        """Return the last position that was given in a topic; it changes with all that may be handed out."""
        position, _, boot = (read(self.directory.topic(topic) / "counter") or b"").partition(b" ")
        return int(position) if boot == BOOT.encode() and position else self._last(topic)

    def _last(self, topic: str) -> int:
        """Find the last position that left a trace: the counter is not synced, and the machine was started anew."""
        folders = [self.directory.topic(topic) / "messages"]
        ends = [self.let_go(topic).position]
        for group in self.groups(topic):
            folder = self.directory.group(topic, group)
            folders += [folder / "inbox", folder / "dead"]
            numbers = [int(Path(name).stem) for name in os.listdir(folder / "lanes")]
            ends += [self.lane(topic, group, number).cursor.floor for number in numbers]
        ends += [entry.position for folder in folders for entry in entries(folder)]
        return max(ends)

    def advance(self, topic: str, number: int) -> int:
        """Give *number* positions; return the one before the first."""
        last = self.counter(topic)
        self.directory.note(self.directory.topic(topic) / "counter", f"{last + number} {BOOT}".encode())
        return last

    def there(self, topic: str, group: str, *, after: int = 0) -> list[Entry]:
        """Return what lies in a topic behind a position, and all of a group's inbox channel, in order."""
        public = entries(self.directory.topic(topic) / "messages", after=after)
        private = entries(self.directory.group(topic, group) / "inbox")
        return list(merge(public, private)) if private else public

    def lane(self, topic: str, group: str, number: int) -> Lane:
        """Return a lane as its files say it."""
        return Lane(self.directory, self.directory.group(topic, group), number)

    # --- provisioning -----------------------------------------------------------------------------------------

    def provision(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool) -> list[Change]:
        """Create what is missing, and say what is there."""
        changes = [self._provision_topic(spec, dry_run) for spec in topics]
        new = {change.what for change in changes if change.kind == "create"}
        return changes + [self._provision_group(spec, new, dry_run) for spec in groups]

    def _provision_topic(self, spec: TopicSpec, dry_run: bool) -> Change:
        what = f"topic {spec.name}"
        if not NAME.match(spec.name) or spec.lanes < 1:
            return Change("conflict", what, "a name is a-z, 0-9, '.', '-', at most 63; lanes are at least one")
        there = self.spec(spec.name)
        if there is not None:
            fields = [field for field in spec.__struct_fields__ if getattr(spec, field) != getattr(there, field)]
            differ = "; ".join(f"{field} is {getattr(there, field)}, not {getattr(spec, field)}" for field in fields)
            return Change("conflict" if fields else "unchanged", what, differ)
        if not dry_run:
            folder = self.directory.topic(spec.name)
            for name in ("messages", "later", "groups"):
                self.directory.make(folder / name)
            self.directory.save([(folder / "topic.json", msgspec.json.encode(spec))])
        return Change("create", what)

    def _provision_group(self, spec: GroupSpec, new: set[str], dry_run: bool) -> Change:
        what = f"group {spec.name}"
        missing = [name for name in spec.topics if f"topic {name}" not in new and self.spec(name) is None]
        if missing or not NAME.match(spec.name):
            return Change("conflict", what, f"there is no topic {', '.join(missing)}" if missing else "no name")
        fresh = [name for name in spec.topics if not self.has_group(name, spec.name)]
        for name in () if dry_run else fresh:
            self.create_group(name, spec.name, spec.start)
        return Change("create" if fresh else "unchanged", what, f"reads {', '.join(fresh)}" if fresh else "")

    def create_group(self, topic: str, group: str, start: Literal["earliest", "latest"]) -> None:
        """Let a group read a topic. Epochs begin at the time, so that a directory made anew has higher ones."""
        folder = self.directory.group(topic, group)
        for name in ("inbox", "later", "dead", "lanes"):
            self.directory.make(folder / name)
        began = Group(start, self.counter(topic) if start == "latest" else 0, self.clock.now_us())
        self.directory.save([(folder / "group.json", msgspec.json.encode(began))])

    # --- publishing -------------------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        """Store messages: nothing has a name until every file is synced, and no receipt says so before the names are.

        Raises:
            OSError: none of them was stored.
        """
        now = self.clock.now_us()
        failed: set[tuple[Address, str | None]] = set()
        receipts: list[Receipt] = []
        files: list[tuple[Path, bytes]] = []
        for message, position in zip(messages, self._positions(messages), strict=True):
            receipt = self._refusal(message, files)
            if message.key is not None and (message.to, message.key) in failed:
                receipt = Receipt(message.id, "rejected", "after_failure")
            if receipt is None:
                files.append((self._path(message, position, now), encode(message)))
            else:
                failed.add((message.to, message.key))
            receipts.append(receipt or Receipt(message.id, "stored"))
        written = self.directory.write(files)
        try:
            self.directory.rename(written)
        except OSError as error:
            detail = f"{error.strerror}: {error.filename}"
            return [Receipt(one.id, "unknown", "", detail) if one.ok else one for one in receipts]
        return receipts

    def _positions(self, messages: Sequence[Message]) -> Iterator[int]:
        """Give each message a position of its topic."""
        names = [_topic(message.to) for message in messages]
        last: dict[str, int] = {}
        for name in {name for name in names if self.spec(name) is not None}:
            last[name] = self.advance(name, names.count(name))
            if last[name] // TRIM_EVERY != (last[name] + names.count(name)) // TRIM_EVERY:
                self.trim(name)
        for name in names:
            last[name] = last.get(name, 0) + 1
            yield last[name]

    def _refusal(self, message: Message, before: Sequence[tuple[Path, bytes]]) -> Receipt | None:
        topic, to = _topic(message.to), message.to
        spec = self.spec(topic)
        if spec is None or (not isinstance(to, Topic) and not self.has_group(topic, to.group)):
            return Receipt(message.id, "rejected", "unknown_topic", f"there is no {to}")
        if (size := size_of(message)) > MESSAGE_BYTES_MAX:
            return Receipt(message.id, "rejected", "too_large", f"{size} bytes; at most {MESSAGE_BYTES_MAX}")
        if spec.size_bytes_max is not None and isinstance(to, Topic):
            for early in (False, True):
                if early:
                    self.trim(topic, early=True)
                if self.size(topic) + sum(len(data) for _, data in before) + size <= spec.size_bytes_max:
                    return None
            behind = ", ".join(self.groups(topic)) or "nobody"
            return Receipt(message.id, "rejected", "full", f"{topic} is at its cap, held back by {behind}")
        return None

    def _path(self, message: Message, position: int, now: int) -> Path:
        spec = self.spec(_topic(message.to))
        assert spec is not None, "refused before"
        folder = self.directory.folder(message.to)
        lane = self._lane_of(message.key, spec.lanes)
        if message.not_before is not None and message.not_before > now and folder.name != "dead":
            return folder.parent / "later" / f"{message.not_before:016}.{lane}.{now}.{position}"
        return folder / f"{position:016}.{lane}.{now}"

    def _lane_of(self, key: str | None, lanes: int) -> int:
        if key is None:
            self._turns += 1
            return self._turns % lanes
        return zlib.crc32(key.encode(errors="surrogatepass")) % lanes

    # --- time -------------------------------------------------------------------------------------------------

    def promote(self, topic: str, group: str, now: int) -> int:
        """Let what is due in a topic and an inbox channel arrive; return when more is due, or 0."""
        later: list[int] = []
        for folder, goal in (
            (self.directory.topic(topic), "messages"),
            (self.directory.group(topic, group), "inbox"),
        ):
            waiting = entries(folder / "later")
            due = [entry for entry in waiting if entry.position <= now]
            if due:
                first = self.advance(topic, len(due)) + 1
                goals = [folder / goal / f"{first + number:016}.{one.lane}.{now}" for number, one in enumerate(due)]
                self.directory.rename([(Path(one.path), path) for one, path in zip(due, goals, strict=True)])
            later += [entry.position for entry in waiting[len(due) :]]
        return min(later, default=0)

    def trim(self, topic: str, *, early: bool = False) -> None:
        """Remove what every group has settled and retention lets go; *early*: whatever its age."""
        spec = self.spec(topic)
        if spec is None or (spec.retention is None and not early):
            return
        age = timedelta(0) if early or spec.retention is None else spec.retention
        limit = self.clock.now_us() - age // timedelta(microseconds=1)
        groups = self.groups(topic)
        settled = {
            number: min((self.lane(topic, group, number).cursor.floor for group in groups), default=limit)
            for number in range(spec.lanes)
        }
        there = entries(self.directory.topic(topic) / "messages")
        gone = [entry for entry in there if entry.stored_at <= limit and entry.position <= settled[entry.lane]]
        if not gone:
            return
        last = self.let_go(topic)
        position = max(last.position, *(entry.position for entry in gone))
        newest = LetGo(position, max(last.stored_at, *(entry.stored_at for entry in gone)))
        self.directory.save([(self.directory.topic(topic) / "let-go", msgspec.json.encode(newest))])
        for entry in gone:
            os.unlink(entry.path)

    def let_go(self, topic: str) -> LetGo:
        """Return the newest message that is no longer there."""
        return msgspec.json.decode(read(self.directory.topic(topic) / "let-go") or b"{}", type=LetGo)

    def size(self, topic: str) -> int:
        """Return how many bytes a topic's messages take."""
        with os.scandir(self.directory.topic(topic) / "messages") as found:
            return sum(one.stat().st_size for one in found)


def _topic(address: Address) -> str:
    return address.name if isinstance(address, Topic) else address.topic
