"""``tidewire config``: the settings that hold here, and where each comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidewire.cli.exits import OK, CommandParser
from tidewire.cli.shown import emit, table
from tidewire.config import Settings, masked, settings_and_origins

__all__ = ["main"]

DESCRIPTION = """\
Print the settings that hold in this folder and environment, and where each comes from: the command line, a variable,
tidewire.toml or pyproject.toml, or the default. Passwords are masked; nothing is opened.
"""
EPILOG = """\
examples:
  tidewire config
  TIDEWIRE_GRACE=30 tidewire config --json
"""


def main(arguments: Sequence[str]) -> int:
    """Print the effective settings, and return the exit code.

    Raises:
        ConfigurationError: names every setting that is unknown or cannot be.
    """
    parser = CommandParser("tidewire config", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--broker", metavar="URL", help="as for `tidewire run`")
    parser.add_argument("--store", metavar="URL", help="as for `tidewire run`")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, its keys documented and stable")
    options = parser.parse_all(arguments)
    settings, origins = settings_and_origins(broker=options.broker, store=options.store)
    names = [field.name for field in msgspec.structs.fields(Settings)]
    shown = {name: (_value(getattr(settings, name)), origins.get(name, "default")) for name in names}
    if options.json:
        emit({"settings": {name: {"value": value, "origin": origin} for name, (value, origin) in shown.items()}})
    else:
        table(("setting", "value", "from"), [(name, _text(value), origin) for name, (value, origin) in shown.items()])
    return OK


def _value(value: Any) -> Any:
    return masked(value) if isinstance(value, str) and "://" in value else value


def _text(value: Any) -> str:
    if not isinstance(value, (str, int, float)):
        value = ", ".join(value)
    return str(value) if value != "" else "none"
