"""The hosts that the URL of a broker names."""

from __future__ import annotations

from tidewire.errors import ConfigurationError

__all__ = ["hosts_in"]


def hosts_in(text: str, *, port: int, example: str) -> list[tuple[str, int]]:
    """Return the hosts in *text*, with commas between them, each with its port, or *port* where it names none.

    Raises:
        ConfigurationError: there is none, or one that cannot be; the hint is *example*.
    """
    return [_host(one, port, example) for one in text.split(",")]


def _host(text: str, port: int, example: str) -> tuple[str, int]:
    host, colon, number = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if colon and not (number.isascii() and number.isdigit() and 0 < int(number[:6]) <= 65_535):
        raise ConfigurationError(f"{number!r} is no port", hint=example)
    host = host if colon else text
    named = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not named or not named.isprintable() or set(named) & set(" []@/"):
        raise ConfigurationError(f"{host!r} is no host", hint=example)
    return named, int(number) if colon else port
