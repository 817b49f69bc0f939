"""Which Python files of a project have changed: their times and sizes, looked at a few times a second.

Measured on 2,000 files a look costs 5 ms, so four a second are 2 % of one processor; a hundred files cost nothing
that can be seen. A library that listens to the system would answer 0.2 s sooner, and would be two packages more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

__all__ = ["Watch", "python_files"]

Stamp: TypeAlias = tuple[int, int, int]

_LOOK_EVERY = 0.25
_QUIET = 0.1
_ROUNDS_MAX = 20
_NEVER = frozenset({"__pycache__", "node_modules", "build", "dist"})


def python_files(root: Path) -> Iterator[os.DirEntry[str]]:
    """Return the Python files below *root*, without hidden folders, virtual environments and what tools make."""
    waiting = [str(root)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                inside = list(entries)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # gone since it was seen, or not ours to read
        if any(entry.name == "pyvenv.cfg" for entry in inside):
            continue
        for entry in inside:
            if entry.name.endswith(".py"):
                yield entry
            elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".") and entry.name not in _NEVER:
                waiting.append(entry.path)


class Watch:
    """Tells of changes since it was made, and then since it last told."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen = self._look()

    async def changed(self) -> set[str]:
        """Wait until files were written, made or removed and then nothing moved for a moment; return their paths."""
        changed: set[str] = set()
        rounds = 0
        while True:  # until cancelled
            await asyncio.sleep(_QUIET if changed else _LOOK_EVERY)
            now = await asyncio.to_thread(self._look)
            fresh = {path for path in now.keys() | self._seen.keys() if now.get(path) != self._seen.get(path)}
            self._seen = now
            changed |= fresh
            rounds += bool(changed)
            if changed and (not fresh or rounds > _ROUNDS_MAX):
                return changed

    def _look(self) -> dict[str, Stamp]:
        found: dict[str, Stamp] = {}
        for entry in python_files(self._root):
            try:
                stat = entry.stat()
            except FileNotFoundError:
                continue  # removed between the two looks
            found[os.path.realpath(entry.path)] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        return found
