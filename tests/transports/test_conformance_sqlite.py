"""The embedded broker passes the conformance suite; its clients die in processes of their own."""

from __future__ import annotations

import fcntl
import os
from datetime import timedelta
from pathlib import Path

from tidewire.testing.transports import Faults, Site, TransportConformance, spawn_client
from tidewire.transports.sqlite import open_sqlite_transport


def _nobody_writes(path: str) -> bool:
    """Whether the write turn is free: who is stopped inside it stops every writer, and no lease can change that."""
    descriptor = os.open(f"{path}-lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


OPENER = "tidewire.transports.sqlite:open_sqlite_transport"


async def _nothing_is_left_running() -> None:
    """An embedded broker runs in its clients; the bench has closed or killed every one of them."""


class TestSqliteTransport(TransportConformance):
    """What the embedded broker promises, it keeps."""

    def site(self, directory: Path) -> Site:
        """Return a broker in a file of the test's own."""
        path = str(directory / "broker.db")
        return Site(
            open=lambda: open_sqlite_transport(path),
            faults=Faults(
                spawn=lambda: spawn_client(OPENER, path, harmless=lambda: _nobody_writes(path)),
                restart=_nothing_is_left_running,
            ),
            soak=timedelta(seconds=2),
        )
