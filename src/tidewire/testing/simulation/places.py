"""Where the files of worlds lie: in memory where the system has a place for that."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["place_for_files", "sweep"]

_MEMORY = Path("/dev/shm")  # noqa: S108 - files in memory, where the system has them


def place_for_files() -> Path:
    """Return a new directory for the files of a world; one of this process is found again by `sweep`."""
    return Path(tempfile.mkdtemp(prefix=f"tidewire-{os.getpid()}-", dir=_MEMORY if _MEMORY.is_dir() else None))


def sweep(pid: int) -> None:
    """Remove what a process that has ended left behind."""
    for left in (_MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())).glob(f"tidewire-{pid}-*"):
        shutil.rmtree(left, ignore_errors=True)
