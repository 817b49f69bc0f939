"""Waking other processes: a unix datagram after a commit. A hint only; slow polling is the net."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterable

__all__ = ["MEMBERS", "WORK", "Waker"]

WORK, MEMBERS = b"w", b"m"


class Waker:
    """This process's address for one broker file, and how to reach others. Abstract names leave nothing behind;
    where there are none (macOS) *address* is empty and members poll."""

    def __init__(self, name: str, on_wake: Callable[[bytes], None]) -> None:
        self.address = ""
        self._on_wake = on_wake
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        if sys.platform == "linux":
            self.address = f"tidewire-{os.getuid()}-{name}"
            self._socket.bind(b"\0" + self.address.encode())
            self._loop.add_reader(self._socket.fileno(), self._read)

    def send(self, addresses: Iterable[str], what: bytes) -> None:
        """Wake *addresses*; who is gone or busy is not waited for. From any thread."""
        for address in addresses:
            if address:
                with contextlib.suppress(OSError):
                    self._socket.sendto(what, b"\0" + address.encode())

    def close(self) -> None:
        """Stop listening."""
        if self.address:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        heard = b""
        with contextlib.suppress(BlockingIOError):
            for _ in range(256):
                heard += self._socket.recv(16)[:1]
        if heard:
            self._on_wake(MEMBERS if MEMBERS in heard else WORK)
