"""The directory: whose turn it is to write, how a file is written so that a crash cannot tear it, and its names.

``lock`` is flocked for every change, so whatever is read or written in a turn nobody else touches meanwhile::

    topics/shop.order/topic.json                     how it was provisioned
                      counter                        the last position that was given, not synced
                      messages/POSITION.LANE.STORED  one message: a line of JSON, then the body
                      later/DUE.LANE.STORED.POSITION what waits for its time
                      groups/billing/group.json      where the group began
                                     inbox/ later/ dead/
                                     lanes/3.cursor  what is settled, synced
                                     lanes/3.owner   who has the lane and what was handed out, not synced
    members/billing/MEMBER                           until when it is alive, and what it reads
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tidewire.model import Address, DeadChannel, InboxChannel, Message, Topic

__all__ = ["NAME", "Directory", "Entry", "decode", "encode", "entries", "size_of"]

NAME = re.compile(r"[a-z][a-z0-9.-]{0,62}\Z")
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class Entry(NamedTuple):
    """A message as its file's name tells it. A topic and its inbox channels share their positions; in a ``later``
    folder *position* is when it is due."""

    position: int
    lane: int
    stored_at: int
    path: str
    private: bool = False
    """Whether it lies in an inbox channel."""


class Directory:
    """The folder at *root*. Used from one thread."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._threads = ThreadPoolExecutor(8, "directory-broker-sync")

    def close(self) -> None:
        """Close the lock file and end the threads."""
        self._threads.shutdown()
        os.close(self._lock)

    @contextmanager
    def turn(self) -> Generator[None]:
        """Wait until nobody else writes; the kernel ends the turn of a process that dies."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # by name: a forked child has this descriptor too

    def note(self, path: Path, data: bytes, *, new: str = "new-0") -> None:
        """Write a file whole or not at all; a power loss may take it, or leave an older one, or an empty one.

        Outside a turn too, where *new* is nobody else's.
        """
        with open(os.open(self.root / new, _FLAGS, 0o600), "wb") as file:
            file.write(data)
        os.replace(self.root / new, path)

    def save(self, files: Sequence[tuple[Path, bytes]]) -> None:
        """Write files that are there after a power loss."""
        self.rename(self.write(files))

    def write(self, files: Sequence[tuple[Path, bytes]]) -> list[tuple[Path, Path]]:
        """Write files and sync what is in them, under names that mean nothing yet; see `rename`."""
        written: list[tuple[Path, Path]] = []
        for number, (path, data) in enumerate(files):
            written.append((self.root / f"new-{number}", path))
            with open(os.open(written[-1][0], _FLAGS, 0o600), "wb") as file:
                file.write(data)
        self._sync_all([new for new, _ in written])
        return written

    def rename(self, written: Sequence[tuple[Path, Path]]) -> None:
        """Give written files their names, in order, and sync the folders: until then a name may be lost."""
        for new, path in written:
            os.replace(new, path)
        self._sync_all(list({path.parent for _, path in written}))

    def _sync_all(self, paths: Sequence[Path]) -> None:
        """Sync side by side: the disk takes many at once for little more than the time of one."""
        if len(paths) == 1:
            self.sync(paths[0])
        else:
            list(self._threads.map(self.sync, paths))

    def make(self, folder: Path) -> None:
        """Make a folder, and those above it, to last."""
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for one in missing:
            self.sync(one.parent)

    def sync(self, path: Path) -> None:
        """Make what is in a file, or the names in a folder, last."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def topic(self, name: str) -> Path:
        """Return the folder of a topic, which need not be there."""
        return self.root / "topics" / name

    def group(self, topic: str, group: str) -> Path:
        """Return the folder of a group on a topic."""
        return self.topic(topic) / "groups" / group

    def folder(self, address: Address) -> Path:
        """Return the folder in which messages for *address* lie."""
        match address:
            case Topic(name=topic):
                return self.topic(topic) / "messages"
            case InboxChannel(topic=topic, group=group):
                return self.group(topic, group) / "inbox"
            case DeadChannel(topic=topic, group=group):
                return self.group(topic, group) / "dead"


def read(path: Path) -> bytes | None:
    """Return what is in a file, or None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def entries(folder: Path, *, after: int = 0) -> list[Entry]:
    """Return the messages in a folder behind a position, in order."""
    first, where = f"{after + 1:016}", str(folder)
    return [_entry(where, name) for name in sorted(os.listdir(folder)) if name >= first]


@lru_cache(maxsize=1 << 16)  # a name never changes its meaning, and a backlog is listed many times
def _entry(folder: str, name: str) -> Entry:
    position, lane, stored_at, *_ = name.split(".")
    return Entry(int(position), int(lane), int(stored_at), f"{folder}/{name}", folder.endswith("/inbox"))


def encode(message: Message) -> bytes:
    """Return a message as a file: all but the body as one line of JSON, then the body as it is."""
    head = {
        "id": message.id,
        "source": message.source,
        "key": message.key,
        "headers": dict(message.headers),
        "not_before": message.not_before,
    }
    return json.dumps(head).encode() + b"\n" + message.body


def decode(data: bytes, to: Address) -> Message:
    """Return the message in a file that lies at *to*."""
    line, _, body = data.partition(b"\n")
    head = json.loads(line)
    return Message(to, head["id"], head["source"], head["key"], head["headers"], body, head["not_before"])


def size_of(message: Message) -> int:
    """Return how large a message is, as `Capabilities.message_bytes_max` counts."""
    headers = sum(len(name.encode()) + len(value.encode()) for name, value in message.headers.items())
    return len(message.body) + headers
