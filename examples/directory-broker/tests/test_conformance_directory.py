"""The directory broker passes the conformance suite; its clients die in processes of their own."""

from __future__ import annotations

import fcntl
import os
from datetime import timedelta
from pathlib import Path

from directory_broker import open_directory_transport
from tidewire.testing.transports import Faults, Site, TransportConformance, spawn_client


async def _nothing_is_left_running() -> None:
    """There is no server: the suite has closed or killed every client."""


def _nobody_writes(root: Path) -> bool:
    """Whether the turn is free: who is stopped inside it stops everybody, and no lease can change that."""
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


class TestDirectoryTransport(TransportConformance):
    """What the directory broker promises, it keeps."""

    def site(self, directory: Path) -> Site:
        """Return a broker in a directory of the case's own."""
        root = directory / "broker"
        opener = "directory_broker:open_directory_transport"
        return Site(
            open=lambda: open_directory_transport(root),
            faults=Faults(
                spawn=lambda: spawn_client(opener, str(root), harmless=lambda: _nobody_writes(root)),
                restart=_nothing_is_left_running,
            ),
            soak=timedelta(seconds=2),
        )
