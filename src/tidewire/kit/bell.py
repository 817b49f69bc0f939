"""A bell for one thread: others ring it, it waits to hear it. What `threading.Event` does, at a tenth of the price."""

from __future__ import annotations

import threading
from contextlib import suppress

__all__ = ["Bell"]


class Bell:
    """Rung once or often before it is heard, it is heard once."""

    __slots__ = ("_silence",)

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Wake whoever waits, or who will wait next. From any thread; never blocks."""
        if self._silence.locked():
            with suppress(RuntimeError):  # somebody else rang it in this instant
                self._silence.release()

    def wait(self, seconds: float) -> bool:
        """Wait until it rings, at most *seconds*; False if it did not. Blocks: for one thread only."""
        return self._silence.acquire(timeout=max(seconds, 0.0))
