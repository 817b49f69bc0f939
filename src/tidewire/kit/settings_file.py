"""Settings in a file of the project."""

from __future__ import annotations

import tomllib
from pathlib import Path

__all__ = ["settings_in"]


def settings_in(directory: Path, problems: list[str]) -> dict[str, tuple[object, str]]:
    """Return what ``tidewire.toml`` or ``pyproject.toml`` in *directory* sets, each with the file's name.

    What cannot be read is added to *problems*.
    """
    for name, section in (("tidewire.toml", ()), ("pyproject.toml", ("tool", "tidewire"))):
        path = directory / name
        if not path.is_file():
            continue
        try:
            table = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
            problems.append(f"{name}: {error}")
            continue
        for part in section:
            table = table.get(part, {})
        if table:
            return {key: (value, name) for key, value in table.items()}
    return {}
