"""The PostgreSQL broker passes the conformance suite on a real server; its clients die in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from postgres_broker_site import broker_on
from postgres_server import NoServer, PostgresServer, private_server

from tidewire.testing.transports import Site, TransportConformance


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server of these cases' own: they kill it, stop it and start it again."""
    try:
        with private_server(checkpoint_timeout="30s") as server:  # what is replayed after a kill is seldom much
            yield server
    except NoServer as error:
        pytest.skip(f"not proven: needs a PostgreSQL server: {error}")


class TestPostgresTransport(TransportConformance):
    """What the PostgreSQL broker promises, it keeps."""

    @pytest.fixture(autouse=True)
    def _a_schema_of_its_own(self, own_server: PostgresServer) -> Iterator[None]:
        with broker_on(own_server) as self.place:
            yield

    def site(self, directory: Path) -> Site:
        """Return a broker in a schema of the test's own."""
        return self.place.site(soak=timedelta(seconds=2))
