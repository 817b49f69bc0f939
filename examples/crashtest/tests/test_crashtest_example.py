"""What the README shows is what the command prints: the right service passes, the wrong one is told."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


def shown() -> list[tuple[str, list[str]]]:
    """Return the commands of the README with the lines they are said to print."""
    blocks = (HERE / "README.md").read_text("utf-8").split("```console\n")[1:]
    lines = [block.split("```")[0].splitlines() for block in blocks]
    return [(block[0].removeprefix("$ "), block[1:]) for block in lines]


@pytest.mark.parametrize(("place", "code"), [(0, 0), (1, 1)], ids=["right", "wrong"])
def test_the_readme_shows_what_is_printed(place: int, code: int) -> None:
    """Each line, and the exit code."""
    command, lines = shown()[place]
    asked = [sys.executable, "-m", "tidewire.cli", *shlex.split(command)[1:]]
    answer = subprocess.run(asked, capture_output=True, text=True, cwd=HERE, timeout=120, check=False)
    assert (code, "") == (answer.returncode, answer.stderr)
    assert [] == [line for line in lines if line not in answer.stdout.splitlines()]
    assert lines
