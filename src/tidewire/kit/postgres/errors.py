"""What PostgreSQL's errors mean: whose fault one is, and what cures it. By SQLSTATE, never by translated text."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from tidewire.errors import TidewireError

__all__ = ["PostgresErrors", "is_rerun", "is_server", "is_too_slow", "state_of"]

# The transaction is gone and nobody is to blame: run again. Serialization failure, deadlock, a lock that did not come.
_RERUN = frozenset({"40001", "40P01", "55P03"})
# The server, not the statement: it goes down, comes up, has no room, cannot read its files, or takes no writes.
_SERVER_CLASSES = ("08", "53", "57P", "58", "XX")
_READ_ONLY = "25006"
# The transaction was idle, or open, for longer than the database allows: who had it was too slow.
_TOO_SLOW = frozenset({"25P03", "25P04"})
# A person must act: who we are, what we may, and what is there.
_REFUSED_CLASSES = ("28", "3D", "3F", "42", "0A")
_SCHEMA_CHANGED = "cached plan"
# libpq reports a refused connection in words only, and the server may translate them: these are its English ones.
_REFUSED_WORDS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")


@dataclass(frozen=True, slots=True)
class PostgresErrors:
    """The classes that an adapter raises; the message begins with what was tried."""

    unavailable: type[TidewireError]
    refused: type[TidewireError]

    def connecting(self, error: psycopg.Error, shown: str) -> TidewireError:
        """Return what a failure to connect to *shown* is."""
        text = _first_line(error)
        if isinstance(error, psycopg.ProgrammingError):  # libpq cannot read it, and has asked nobody
            return self.refused(f"{shown} cannot be read: {text}", hint="docs/postgresql.md has the URL's parameters")
        if any(word in text for word in _REFUSED_WORDS):
            return self.refused(f"PostgreSQL refuses {shown}: {text}", hint="check user, password and database")
        return self.unavailable(f"cannot reach {shown}: {text}", hint="`tidewire doctor` shows what it can reach")

    def lost(self, what: str, error: psycopg.Error) -> TidewireError:
        """Return what a broken connection is."""
        return self.unavailable(f"{what}: the connection to PostgreSQL was lost ({_first_line(error)})")

    def typed(self, what: str, error: psycopg.Error) -> TidewireError:
        """Return what the failure of one of tidewire's own statements is."""
        state = state_of(error)
        if state == _READ_ONLY:
            return self.unavailable(
                f"{what}: this PostgreSQL server is read-only now",
                hint="after a failover, name all hosts in the URL: postgresql://user@one,two/database",
            )
        if state.startswith(_REFUSED_CLASSES) and _SCHEMA_CHANGED not in str(error):
            return self.refused(
                f"{what}: {_first_line(error)} ({state})",
                hint="`tidewire store status` shows what is there; docs/postgresql.md has the grants",
            )
        return self.unavailable(f"{what}: {_first_line(error)} ({state or 'no SQLSTATE'})")


def state_of(error: psycopg.Error) -> str:
    """Return the SQLSTATE, or nothing where the server never said one."""
    return error.sqlstate or ""


def is_rerun(error: psycopg.Error) -> bool:
    """Whether the transaction is to be run again, uncounted: who conflicts with others has done nothing wrong."""
    return state_of(error) in _RERUN or _SCHEMA_CHANGED in str(error)


def is_server(error: psycopg.Error) -> bool:
    """Whether the server is at fault, and not the statement."""
    state = state_of(error)
    return state == _READ_ONLY or state.startswith(_SERVER_CLASSES)


def is_too_slow(error: psycopg.Error) -> bool:
    """Whether the server has ended the connection because its transaction stood idle, or lasted, for too long."""
    return state_of(error) in _TOO_SLOW


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
