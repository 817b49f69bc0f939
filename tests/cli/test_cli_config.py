"""``tidewire config``: which settings hold, and where each comes from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from tidewire.cli import exits
from tidewire.config import Settings


def config(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in *folder* with *environment* and no other setting."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("TIDEWIRE_")}
    command = [sys.executable, "-m", "tidewire.cli", "config", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=folder, env={**known, **environment}
    )


def test_each_setting_is_told_with_its_origin(tmp_path: Path) -> None:
    """The command line wins over a variable, that over the file, that over the default; a mounted file is named."""
    (tmp_path / "tidewire.toml").write_text('grace = 20\nlease = 40\nbroker = "sqlite:///file.db"\n')
    (tmp_path / "store").write_text("sqlite:///mounted.db\n")
    given = {"TIDEWIRE_LEASE": "50", "TIDEWIRE_BROKER": "sqlite:///variable.db"}
    mounted = {"TIDEWIRE_STORE_FILE": str(tmp_path / "store")}
    answer = config(tmp_path, "--broker", "sqlite:///given.db", "--json", **given, **mounted)
    assert (exits.OK, "") == (answer.returncode, answer.stderr)
    found = json.loads(answer.stdout)["settings"]
    assert {field.name for field in msgspec.structs.fields(Settings)} == set(found)
    assert {"value": "sqlite:///given.db", "origin": "the command line"} == found["broker"]
    assert {"value": 50.0, "origin": "TIDEWIRE_LEASE"} == found["lease"]
    assert {"value": 20.0, "origin": "tidewire.toml"} == found["grace"]
    assert {"value": "sqlite:///mounted.db", "origin": "TIDEWIRE_STORE_FILE"} == found["store"]
    assert {"value": 8, "origin": "default"} == found["lanes"]
    lines = [line.split() for line in config(tmp_path).stdout.splitlines()]
    assert ["setting", "value", "from"] == lines[0]
    assert ["grace", "20.0", "tidewire.toml"] in lines
    assert ["store", "none", "default"] in lines


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    """In no mode."""
    for arguments in ((), ("--json",)):
        answer = config(tmp_path, *arguments, TIDEWIRE_BROKER="kafka://me:secret@host")
        assert (exits.OK, True) == (answer.returncode, "me:***@host" in answer.stdout)
        assert "secret" not in answer.stdout + answer.stderr


def test_wrong_settings_are_all_named(tmp_path: Path) -> None:
    """Exit 2, nothing on stdout."""
    answer = config(tmp_path, TIDEWIRE_GRACCE="1", TIDEWIRE_LANES="many")
    assert (exits.USAGE, "") == (answer.returncode, answer.stdout)
    assert "did you mean 'grace'?" in answer.stderr
    assert "TIDEWIRE_LANES" in answer.stderr
