"""``tidewire completion``: the scripts, in the shells themselves, asked as a person who presses the tab key."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tidewire.cli.completion import SHELLS, words_of
from tidewire.cli.dlq import VERBS
from tidewire.cli.exits import CommandParser, parser_of
from tidewire.cli.main import COMMANDS
from tidewire.cli.new import TEMPLATES
from tidewire.cli.shells import bash, fish, zsh
from tidewire.cli.words import Option, Words

# Presses tab behind the given words and prints what is proposed.
IN_BASH = """
source "$1"; shift
COMP_WORDS=(tidewire "$@"); COMP_CWORD=$#; COMP_LINE="tidewire $*"; COMP_POINT=${#COMP_LINE}
_tidewire
printf '%s\\n' "${COMPREPLY[@]}"
"""
# Stands in for zsh's own proposing, which needs a terminal: what is proposed is printed.
IN_ZSH = """
compdef() { : }
_describe() { local -a these; these=("${(@P)4}"); print -rl -- ${these%%:*} }
_files() { print -rl -- FILES }
source "$1"; shift
words=(tidewire "$@"); CURRENT=$#words
_tidewire
"""


@cache
def script(shell: str) -> str:
    """Return the script as the command prints it."""
    asked = [sys.executable, "-m", "tidewire.cli", "completion", shell]
    return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout


def proposed(folder: Path, shell: str, words: Sequence[str]) -> list[str]:
    """Return what *shell* proposes behind *words*, the last of which is begun, maybe with nothing."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: its script is generated and not run")
    kept = folder / f"tidewire.{shell}"
    kept.write_text(script(shell))
    if shell == "fish":
        line = " ".join(["tidewire", *words])
        asked = ["fish", "--no-config", "-c", f"source {kept}; complete -C {line!r}"]
    else:
        flags = ["--norc"] if shell == "bash" else ["-f"]
        asked = [shell, *flags, "-c", IN_BASH if shell == "bash" else IN_ZSH, shell, str(kept), *words]
    ran = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False, cwd=folder)
    assert (0, "") == (ran.returncode, ran.stderr)
    begun = words[-1]
    return sorted(word for line in ran.stdout.splitlines() if (word := line.split("\t")[0]).startswith(begun) and word)


SHELLS_HERE = pytest.mark.parametrize("shell", sorted(SHELLS))


@SHELLS_HERE
def test_commands_are_proposed(shell: str, tmp_path: Path) -> None:
    """Behind ``tidewire`` every command is proposed, and what is begun narrows them down."""
    assert set(COMMANDS) <= {*proposed(tmp_path, shell, [""]), "--help", "--version"}
    assert sorted(name for name in COMMANDS if name.startswith("d")) == proposed(tmp_path, shell, ["d"])


@SHELLS_HERE
def test_verbs_are_proposed(shell: str, tmp_path: Path) -> None:
    """Behind a command with verbs its verbs are proposed, also those that are names of commands too."""
    assert sorted(VERBS) == proposed(tmp_path, shell, ["dlq", ""])
    assert ["groups"] == proposed(tmp_path, shell, ["dlq", "g"])


@SHELLS_HERE
def test_options_are_proposed(shell: str, tmp_path: Path) -> None:
    """Every option of a command, and of a verb, is proposed; hidden ones are not."""
    assert ["--help", "--json", "--template"] == proposed(tmp_path, shell, ["new", "--"])
    run = proposed(tmp_path, shell, ["run", "shop:billing", "--"])
    assert (True, False) == ("--provision" in run, "--supervised" in run)
    assert ["--reason", "--reason-is"] == proposed(tmp_path, shell, ["dlq", "discard", "--reaso"])


@SHELLS_HERE
def test_choices_are_proposed(shell: str, tmp_path: Path) -> None:
    """Behind an option with choices these are proposed, and so are the choices of an argument."""
    assert sorted(TEMPLATES) == proposed(tmp_path, shell, ["new", "shop", "--template", ""])
    assert ["multi-service"] == proposed(tmp_path, shell, ["new", "--template", "mu"])
    assert {"flush", "stuck"} <= set(proposed(tmp_path, shell, ["outbox", ""]))
    assert ["zsh"] == proposed(tmp_path, shell, ["completion", "z"])


def test_bash_completes_behind_an_equals_sign(tmp_path: Path) -> None:
    """``--template=fa`` reaches the script in three words."""
    assert ["fastapi"] == proposed(tmp_path, "bash", ["new", "--template", "=", "fa"])
    assert [] == proposed(tmp_path, "bash", ["bench", "--size", "5"])


def test_bash_proposes_files_where_a_file_is_wanted(tmp_path: Path) -> None:
    """A name with a space in it stays one word."""
    (tmp_path / "my orders.jsonl").touch()
    assert ["my orders.jsonl"] == proposed(tmp_path, "bash", ["demo", "--orders", "my"])


def test_bash_loads_it_as_the_help_says() -> None:
    """``source <(tidewire completion bash)`` registers the completion."""
    source = f"source <({sys.executable} -m tidewire.cli completion bash) && complete -p tidewire"
    ran = subprocess.run(["bash", "--norc", "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert (0, "", True) == (ran.returncode, ran.stderr, "-F _tidewire tidewire" in ran.stdout)


def test_json_tells_what_the_script_is_made_of() -> None:
    """``--json``: for every command and verb its choices and its options, with their lines."""
    asked = [sys.executable, "-m", "tidewire.cli", "completion", "fish", "--json"]
    told = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout)
    places = {one["at"]: one for one in told["words"]}
    assert {"", *COMMANDS, *(f"dlq {verb}" for verb in VERBS)} == set(places)
    options = {name: one for one in places["new"]["options"] for name in one["names"]}
    assert sorted(TEMPLATES) == sorted(options["--template"]["choices"])
    assert ("fish", True) == (told["shell"], options["--template"]["takes"])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_shows_its_parser(name: str) -> None:
    """No command does anything before it parses its arguments, so its parser can be had; each has ``--json``."""
    places = {one.at: one for one in words_of()}
    if name == "dlq":
        assert places["dlq"].verbs
    else:
        assert "--help" in places[name].flags
        assert {"--json", "--json-logs"} & set(places[name].flags)


def test_a_shell_that_is_not_known_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Another shell, or none, ends with exit 2 and the list of those that are there."""
    from tidewire.cli.main import main

    assert 2 == main(["completion", "powershell"])
    assert "bash" in capsys.readouterr().err
    assert 2 == main(["completion"])


def test_words_with_signs_are_quoted(tmp_path: Path) -> None:
    """A line with quotes, colons and backslashes stays one text in every shell."""
    options = (Option(names=("--odd", "-o"), line="it's 90 %: a\\b $HOME `x`", takes=True, choices=("a", "b")),)
    found = [Words(at="", line="", choices={"go": 'don\'t: \\ "stop" $x'}, options=options)]
    for shell, made in (("bash", bash(found)), ("zsh", zsh(found)), ("fish", fish(found))):
        if shutil.which(shell) is not None:
            (tmp_path / shell).write_text(made)
            ran = subprocess.run([shell, "-n", str(tmp_path / shell)], capture_output=True, text=True, check=False)
            assert (0, "") == (ran.returncode, ran.stderr)


def test_a_command_that_acts_before_it_parses_is_found() -> None:
    """The way to a parser bites: a command that ends without parsing has none to show."""
    parser = CommandParser("tidewire x", "X.")
    assert parser is parser_of(lambda given: len(parser.parse_all(given).__dict__))
    with pytest.raises(AssertionError, match="before it parses"):
        parser_of(lambda given: len(given))
