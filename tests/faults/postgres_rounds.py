"""The PostgreSQL server of a campaign's round."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fault_rounds import NotPossible

from tidewire.testing.servers.postgresql import NoServer, private_server

__all__ = ["campaign_server"]


@contextlib.contextmanager
def campaign_server() -> Iterator[str]:
    """Yield the URL of a server of its own that syncs every commit.

    Raises:
        NotPossible: none can be had here.
    """
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(private_server(durable=True))
        except NoServer as error:
            raise NotPossible(f"it needs a PostgreSQL server: {error}") from error
        yield server.url
