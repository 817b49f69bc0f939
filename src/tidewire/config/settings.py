"""How a service is run: settings from the command line, the environment and files, all problems at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tidewire.config.urls import did_you_mean, one_file
from tidewire.errors import ConfigurationError
from tidewire.kit.settings_file import settings_in

__all__ = ["Settings", "broker_of_tests", "colour_refused", "settings_and_origins", "settings_from"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a service is run. Precedence: command line, environment (``TIDEWIRE_…``), ``tidewire.toml`` or
    ``[tool.tidewire]`` in ``pyproject.toml``, default.

    *broker*, *store*: URLs; no store means none. *lease*, *grace*, *max_hold*, *stuck_after* in seconds. *stuck_lag*:
    how many events must wait before a silent broker is doubted. *lanes* of topics that are created.
    *provision*: create missing topics and groups. *log*: ``text`` or ``json``.
    *relay*: publish the store's outbox from this process; false where `tidewire relay` does.
    *probe*: ``HOST:PORT`` where ``tidewire run`` answers health probes; none means nowhere.
    *services*: what ``tidewire dev`` runs, each as ``module:service``; none means all that it finds.
    """

    broker: str = "sqlite:///.tidewire/broker.db"
    store: str = ""
    lease: float = 30.0
    grace: float = 10.0
    max_hold: float = 600.0
    stuck_after: float = 60.0
    stuck_lag: int = 1
    lanes: int = 8
    provision: bool = False
    log: str = "text"
    probe: str = ""
    relay: bool = True
    services: tuple[str, ...] = ()

    def seconds(self, name: str) -> timedelta:
        """Return the setting *name* as a duration."""
        return timedelta(seconds=getattr(self, name))

    def probe_address(self) -> tuple[str, int] | None:
        """Return host and port of *probe*, or None where there is none."""
        return _address(self.probe) if self.probe else None


def settings_from(
    environ: Mapping[str, str] | None = None,
    *,
    directory: Path | None = None,
    assumed: Mapping[str, object] | None = None,
    **given: object,
) -> Settings:
    """Return the effective settings; *given* (the command line) wins, None means not given.

    *assumed* stands in the place of the defaults, for a command that has others.

    ``TIDEWIRE_BROKER_FILE`` and the like name a file that holds the value, for mounted secrets.

    Raises:
        ConfigurationError: names every unknown setting and every bad value at once, with "did you mean".
    """
    return settings_and_origins(environ, directory=directory, assumed=assumed, **given)[0]


def settings_and_origins(
    environ: Mapping[str, str] | None = None,
    *,
    directory: Path | None = None,
    assumed: Mapping[str, object] | None = None,
    **given: object,
) -> tuple[Settings, Mapping[str, str]]:
    """Return the effective settings, and where each that is no default was found: a file, a variable, the command line.

    The rest is as `settings_from`.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    values: dict[str, object] = dict(assumed or {})
    origins: dict[str, str] = {}
    known = {field.name: field for field in msgspec.structs.fields(Settings)}
    sources = [settings_in(directory or Path.cwd(), problems), _from_environment(environ, problems)]
    sources.append({name: (value, "the command line") for name, value in given.items() if value is not None})
    for source in sources:
        for name, (value, where) in source.items():
            if name not in known:
                problems.append(f"{where}: unknown setting {name!r}{did_you_mean(name, known)}")
                continue
            if name == "services" and isinstance(value, str):
                value = [part.strip() for part in value.split(",") if part.strip()]
            try:
                values[name] = msgspec.convert(value, known[name].type, strict=not isinstance(value, str))
                origins[name] = where
            except msgspec.ValidationError as error:
                problems.append(f"{where}: {name}: {error}")
    problems += _impossible(values)
    if problems:
        raise ConfigurationError("; ".join(problems), hint="docs/settings.md lists every setting")
    return msgspec.convert(values, Settings), origins


def broker_of_tests() -> str:
    """Return ``TIDEWIRE_TEST_BROKER``, the URL on which users' tests run in real time, or nothing: in memory."""
    return os.environ.get("TIDEWIRE_TEST_BROKER", "")


def colour_refused(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the person wants no colour on their terminal: ``NO_COLOR`` is set, or the terminal is ``dumb``."""
    environ = os.environ if environ is None else environ
    return bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, tuple[object, str]]:
    found: dict[str, tuple[object, str]] = {}
    for name, value in environ.items():
        if not name.startswith("TIDEWIRE_") or name.startswith("TIDEWIRE_TEST_"):
            continue
        setting = name.removeprefix("TIDEWIRE_").lower()
        if setting.endswith("_file"):
            try:
                value = Path(value).read_text().strip()
            except OSError as error:
                problems.append(f"{name}: cannot read the file it names ({error.strerror})")
                continue
            setting = setting.removesuffix("_file")
        found[setting] = (value, name)
    return found


def _impossible(values: Mapping[str, object]) -> list[str]:
    problems: list[str] = []
    for name in ("lease", "grace", "max_hold", "stuck_after", "stuck_lag", "lanes"):
        value = values.get(name, 1)
        if isinstance(value, (int, float)) and not 0 < value < 10**8:
            problems.append(f"{name} must be above zero, not {value}")
    if values.get("log", "text") not in ("text", "json"):
        problems.append(f"log must be text or json, not {values['log']!r}")
    if values.get("probe") and _address(str(values["probe"])) is None:
        problems.append(f"probe must be HOST:PORT, for example 0.0.0.0:8080, not {values['probe']!r}")
    broker, store = values.get("broker", Settings().broker), values.get("store")
    if store and one_file(str(broker), str(store)):
        problems.append("broker and store cannot be the same file; give the store a file of its own")
    return problems


def _address(text: str) -> tuple[str, int] | None:
    """Return the host and port that *text* names (``[::1]:8080`` too), or None if it names none."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return (host, port) if host and port is not None and parts.netloc == text else None
