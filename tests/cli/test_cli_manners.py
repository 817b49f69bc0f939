"""The manners of every command and every verb: help with examples and exit codes, ``--json``, hints, nothing loaded."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tidewire.cli import exits
from tidewire.cli.dlq import VERBS
from tidewire.cli.main import COMMANDS

ALL = [*((name,) for name in COMMANDS), *(("dlq", verb) for verb in VERBS)]
# What no help may load: adapters, client libraries, the tools for tests.
HEAVY = re.compile(r"(tidewire\.(transports|stores|testing)\.\w+|sqlite3|starlette|uvicorn|cronsim|pytest|hypothesis)")


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "tidewire.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL, cwd=cwd
    )


@cache
def helped(command: tuple[str, ...]) -> tuple[int, str, frozenset[str]]:
    """Return the exit code of ``COMMAND --help``, what it prints, and which modules it has loaded."""
    script = "import sys; from tidewire.cli.main import main; code = main(sys.argv[1:])\n"
    script += "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    asked = [sys.executable, "-c", script, *command, "--help"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    return answer.returncode, answer.stdout, frozenset(answer.stderr.split())


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_help_has_examples_and_exit_codes(command: tuple[str, ...]) -> None:
    """On stdout, exit 0; it names the command, shows how to use it, and says what exit codes mean."""
    code, said, _ = helped(command)
    assert exits.OK == code
    assert f"usage: tidewire {' '.join(command)}" in said
    examples = re.search(r"examples?:\n((?: +.*\n)+)", said)
    assert examples
    assert f"tidewire {' '.join(command)}" in examples[1]
    assert "exit code" in said


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_help_loads_no_adapter(command: tuple[str, ...]) -> None:
    """Neither a broker's or a store's adapter, nor anybody's client library."""
    _, _, loaded = helped(command)
    assert [] == sorted(name for name in loaded if HEAVY.fullmatch(name))


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_command_speaks_json(command: tuple[str, ...]) -> None:
    """``--json`` is among the options."""
    assert "--json" in helped(command)[1]


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_an_unknown_option_is_answered_with_a_hint(command: tuple[str, ...], tmp_path: Path) -> None:
    """Exit 2, ``error:`` and ``hint:`` on stderr, nothing on stdout, and nothing is made."""
    answer = run(*command, "--no-such-option", cwd=tmp_path)
    assert (exits.USAGE, "") == (answer.returncode, answer.stdout)
    assert ["error:", "hint:"] == [line.split()[0] for line in answer.stderr.splitlines()]
    assert [] == list(tmp_path.iterdir())


def test_long_work_tells_its_progress_on_a_terminal(tmp_path: Path) -> None:
    """On stderr, where that is a terminal; standard output stays what it is."""
    (tmp_path / "shop.py").write_text(
        "from tidewire import event\n\n@event('shop.order.placed', key='order_id')\n"
        "class OrderPlaced:\n    order_id: str\n"
    )
    (tmp_path / "orders.jsonl").write_text("".join(f'{{"order_id": "{number}"}}\n' for number in range(2_500)))
    publish = ("publish", "shop:OrderPlaced", "--data", "@orders.jsonl", "--lines", "--provision", "--json")
    said, progress = on_a_terminal(tmp_path, *publish)
    assert 2_500 == len([json.loads(line) for line in said.splitlines()])
    assert "events published: 2,0" in progress
    said, progress = on_a_terminal(tmp_path, "bench", "--events", "2000", "--json")
    assert json.loads(said)["rows"]
    assert "events published: " in progress


def on_a_terminal(folder: Path, *arguments: str) -> tuple[str, str]:
    """Run a command with a terminal as its stderr; return stdout and what the terminal showed."""
    here, there = pty.openpty()
    try:
        command = [sys.executable, "-m", "tidewire.cli", *arguments]
        answer = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=there, text=True, timeout=120, check=False, cwd=folder
        )
        os.close(there)
        shown = b""
        while True:
            try:
                piece = os.read(here, 65_536)
            except OSError:  # nobody writes any more
                break
            if not piece:
                break
            shown += piece
    finally:
        os.close(here)
    assert exits.OK == answer.returncode, shown.decode()
    return answer.stdout, shown.decode()
