"""Where a PostgreSQL database is and how tidewire's objects are named in it, from one URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tidewire.errors import ConfigurationError

__all__ = ["PostgresPlace", "postgres_place"]

_OURS = ("schema", "prefix", "connections")
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
# Dead peers are noticed in about half a minute, in whatever state the connection is.
_DEFAULTS = {
    "application_name": "tidewire",
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
_FORCED = {"client_encoding": "UTF8"}


@dataclass(frozen=True, slots=True)
class PostgresPlace:
    """A database, and the schema and prefix of tidewire's objects. *url* is what libpq is given; it holds secrets."""

    url: str = field(repr=False)
    shown: str
    schema: str
    prefix: str
    connections: int

    def named(self, name: str) -> str:
        """Return the qualified name of the object *name* (``mark``), as it stands in SQL."""
        return f"{self.schema}.{self.prefix}{name}"


def postgres_place(url: str, *, prefix: str = "tidewire_", connections: int = 16) -> PostgresPlace:
    """Read *url*: ``postgresql://user@host:port/db``, with libpq's parameters and ours: *schema* (``public``),
    *prefix* of all names, *connections* at most. Several hosts are tried in turn for one that takes writes.

    Raises:
        ConfigurationError: not such a URL, a bad name, or an unknown parameter; the text shows no password.
    """
    shown = _masked(url)
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ConfigurationError(f"{shown!r} is not a PostgreSQL URL", hint="postgresql://user@host:5432/database")
    try:
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ConfigurationError(f"{shown!r}: its parameters cannot be read", hint="?name=value&name=value") from None
    ours = {name: query.pop(name) for name in _OURS if name in query}
    schema, prefix = ours.get("schema", "public"), ours.get("prefix", prefix)
    for what, name in (("schema", schema), ("prefix", prefix or "_")):
        if _NAME.fullmatch(name) is None:
            raise ConfigurationError(
                f"{shown!r}: {what} {name!r} is not a plain name",
                hint="lower-case letters, digits and underscores, at most 40, none of it quoted",
            )
    count = ours.get("connections", str(connections))
    if not count.isdecimal() or not 1 <= int(count) <= 10_000:
        raise ConfigurationError(f"{shown!r}: connections={count} is not a number from 1 to 10000")
    return PostgresPlace(_for_libpq(parts.netloc, parts.path, query), shown, schema, prefix, int(count))


def _for_libpq(netloc: str, path: str, query: Mapping[str, str]) -> str:
    settings = {**_DEFAULTS, **query, **_FORCED}
    if "," in netloc or "," in query.get("host", ""):
        settings.setdefault("target_session_attrs", "read-write")
    joined = "&".join(f"{quote(name)}={quote(value)}" for name, value in settings.items())
    return f"postgresql://{netloc}{path}?{joined}"


def _masked(url: str) -> str:
    """Return *url* without passwords, wherever one stands in it."""
    head, separator, rest = url.partition("://")
    authority, slash, tail = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    name, colon, _ = user.partition(":")
    shown = f"{head}{separator}{name}{':***' if colon else ''}{at}{hosts}{slash}{tail}"
    return re.sub(r"(?i)([?&](?:ssl)?password=)[^&]*", r"\1***", unquote(shown) if "%" in tail else shown)
