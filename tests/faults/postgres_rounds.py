"""The PostgreSQL server of a campaign's round."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from fault_rounds import NotPossible

__all__ = ["campaign_server"]


@contextlib.contextmanager
def campaign_server() -> Iterator[str]:
    """Yield the URL of a server of its own that syncs every commit.

    Raises:
        NotPossible: none can be had here.
    """
    sys.path.append(str(Path(__file__).parents[2] / "scripts"))
    from postgres_server import NoServer, private_server

    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(private_server(durable=True))
        except NoServer as error:
            raise NotPossible(f"it needs a PostgreSQL server: {error}") from error
        yield server.url
