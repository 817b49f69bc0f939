"""What URLs of brokers and stores say, and how people are told of them."""

from __future__ import annotations

import difflib
import os
import re
from urllib.parse import unquote, urlsplit

from tidewire.errors import ConfigurationError

__all__ = ["BUILT_IN", "EXTRAS", "did_you_mean", "masked", "one_file", "path_in", "scheme_of"]

BUILT_IN = ("memory", "sqlite")
EXTRAS = {"broker": ("amqp", "amqps", "kafka", "postgresql"), "store": ("postgresql",)}
_ESCAPES = "in a user and a password write / as %2F, ? as %3F, # as %23 and @ as %40"


def masked(url: str) -> str:
    """Return *url* without its password, and without those in its query, for people to read."""
    try:
        password = urlsplit(url).password
        if _holds_half_a_password(url):
            return re.sub(r"://.*@", "://***@", url, flags=re.DOTALL)
    except ValueError:
        return "<not a url>"
    shown = url.replace(f":{password}@", ":***@") if password else url
    return re.sub(r"(?i)((?:password|secret|key\.pem)[^=&]*=)[^&#]*", r"\1***", shown)


def scheme_of(url: str, what: str) -> str:
    """Return the scheme of *url*, the URL of a *what* (``broker`` or ``store``).

    Raises:
        ConfigurationError: it has none, or is no URL.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme:
        known = sorted((*BUILT_IN, *EXTRAS[what]))
        raise ConfigurationError(
            f"{what} {masked(url)!r} is not a {what} URL{did_you_mean(scheme, known)}",
            hint=f"for example sqlite:///data/{what}.db; schemes: {', '.join(known)}",
        )
    try:
        if _holds_half_a_password(url):
            raise ConfigurationError(f"{what}: its URL has a user whose password ends too early", hint=_ESCAPES)
    except ValueError as error:
        raise ConfigurationError(f"{what}: its {scheme}:// URL cannot be read: {error}", hint=_ESCAPES) from error
    return scheme


def _holds_half_a_password(url: str) -> bool:
    """Whether a ``/``, ``?`` or ``#`` that is not escaped ends the password of *url*: its rest is no host's then.

    Raises:
        ValueError: it is no URL.
    """
    parts = urlsplit(url)
    names = [setting.partition("=")[0] for setting in parts.query.split("&")]
    return (
        ":" in parts.netloc
        and "@" not in parts.netloc
        and any("@" in text for text in (parts.path, parts.fragment, *names))
    )


def path_in(url: str, what: str) -> str:
    """Return the path of the file that *url* names; empty for ``memory://``.

    Raises:
        ConfigurationError: it names no file.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        return ""
    if not rest.startswith("/") or not rest[1:]:
        raise ConfigurationError(
            f"{what} {url!r} names no file", hint="sqlite:///relative/path or sqlite:////absolute/path"
        )
    return unquote(rest[1:])


def one_file(first: str, second: str) -> bool:
    """Whether two URLs name one file, however they spell it."""
    paths = [unquote(url.partition(":///")[2]) for url in (first, second) if url.startswith("sqlite:///")]
    return len(paths) == 2 and os.path.realpath(paths[0]) == os.path.realpath(paths[1])


def did_you_mean(word: str, known: object) -> str:
    """Return what to add to the complaint about *word*: the nearest of *known*, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)  # type: ignore[call-overload]
    return f"; did you mean {close[0]!r}?" if close else ""
