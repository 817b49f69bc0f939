"""Looking at a broker in PostgreSQL from outside: one read-only transaction for each look."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg

from tidewire.errors import TransportUnavailable
from tidewire.kit.postgres.place import postgres_place
from tidewire.kit.sqllog.counting import describe_topics, specs_of
from tidewire.kit.sqllog.home import Connection
from tidewire.kit.sqllog.provisioning import differences
from tidewire.model import Capabilities, Change, GroupSpec, TopicInfo, TopicSpec
from tidewire.transports.postgres.beside import snapshot
from tidewire.transports.postgres.dialect import translator
from tidewire.transports.postgres.schema import demand_tables, read_version
from tidewire.transports.postgres.session import ERRORS, Limits, Session, connect
from tidewire.transports.postgres.transport import capabilities_of

__all__ = ["PostgresBrokerLook"]

T = TypeVar("T")


class PostgresBrokerLook:
    """See `tidewire.protocols.BrokerLook`. Each call connects anew."""

    def __init__(self, url: str) -> None:
        self._place = postgres_place(url)

    async def capabilities(self) -> Capabilities:
        """Ask the server how durable it is."""
        return await asyncio.to_thread(self._connected, lambda session: capabilities_of(session.facts))

    async def compare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> Sequence[Change]:
        """Compare with what is in the database."""
        return await asyncio.to_thread(self._seen, lambda connection: differences(connection, topics, groups))

    async def topics(self) -> Sequence[TopicInfo]:
        """Read every topic."""
        return await asyncio.to_thread(self._seen, describe_topics)

    async def specs(self, names: Sequence[str]) -> Sequence[TopicSpec]:
        """Read the rows of these topics."""
        return await asyncio.to_thread(self._seen, lambda connection: specs_of(connection, names))

    def _seen(self, look: Callable[[Connection], T]) -> T:
        def run(session: Session) -> T:
            version = read_version(session.connection, self._place)
            if version == 0:
                raise TransportUnavailable(f"there is no broker in {self._place.shown} yet")
            demand_tables(version, self._place)
            return snapshot(session, look)

        return self._connected(run)

    def _connected(self, run: Callable[[Session], T]) -> T:
        session = connect(self._place, translator(lambda table: self._place.named(f"broker_{table}")), limits=Limits())
        try:
            return run(session)
        except psycopg.Error as error:
            raise ERRORS.typed(f"reading {self._place.shown}", error) from error
        finally:
            session.close()
