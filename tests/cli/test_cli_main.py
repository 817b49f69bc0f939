"""The command line's manners: what goes where, which exit code, what is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tidewire.cli import exits
from tidewire.cli.exits import CommandParser, did_you_mean, exit_code
from tidewire.cli.main import COMMANDS, main
from tidewire.errors import (
    ConfigurationError,
    MissingExtra,
    StoreRefused,
    StoreUnavailable,
    TidewireError,
    TransportClosed,
    TransportRefused,
    TransportUnavailable,
)


def tidewire(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "tidewire.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)


def test_help_goes_to_stdout_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """``tidewire --help`` is what was asked for: on stdout, exit 0, every command and every exit code in it."""
    assert exits.OK == main(["--help"])
    said = capsys.readouterr()
    assert "" == said.err
    assert [] == [name for name in COMMANDS if f"  {name} " not in said.out]
    codes = (exits.OK, exits.FAILED, exits.USAGE, exits.UNAVAILABLE, exits.INTERRUPTED)
    assert [] == [code for code in codes if f"\n  {code} " not in said.out]


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command the usage goes to stderr and the exit code says that something is missing."""
    assert exits.USAGE == main([])
    said = capsys.readouterr()
    assert ("", True) == (said.out, "usage: tidewire" in said.err)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str) -> None:
    """``tidewire COMMAND --help`` answers on stdout, with exit 0."""
    answer = tidewire(command, "--help")
    assert (0, "") == (answer.returncode, answer.stderr)
    assert f"usage: tidewire {command}" in answer.stdout


def test_version_names_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` tells the versions of tidewire, Python and SQLite on one line of stdout."""
    assert exits.OK == main(["--version"])
    said = capsys.readouterr().out
    assert 1 == said.count("\n")
    assert said.startswith("tidewire ")
    assert "SQLite 3." in said


def test_a_misspelt_command_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown command ends with exit 2, the word that was given and the word that is near."""
    assert exits.USAGE == main(["rnu", "shop:billing"])
    said = capsys.readouterr()
    assert ("", "error: there is no command 'rnu'\nhint: did you mean 'run'?\n") == (said.out, said.err)


def test_an_unknown_command_that_is_near_none_points_to_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing is near, the hint says how to see what there is."""
    assert exits.USAGE == main(["xylophone"])
    assert "hint: `tidewire --help`" in capsys.readouterr().err


def test_a_misspelt_option_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown option ends with exit 2 and the option that is near; abbreviations are not guessed."""
    assert exits.USAGE == main(["run", "shop:billing", "--worker=2"])
    said = capsys.readouterr().err
    assert "unknown argument '--worker=2'" in said
    assert "did you mean '--workers'?" in said


def test_an_error_of_tidewire_is_told_with_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors reach people as ``error:`` and ``hint:`` lines on stderr, never as a traceback."""
    assert exits.USAGE == main(["run", "no.such:service"])
    lines = capsys.readouterr().err.splitlines()
    assert ["error:", "hint:"] == [line.split()[0] for line in lines]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), exits.USAGE),
        (MissingExtra("x"), exits.USAGE),
        (TransportRefused("x"), exits.USAGE),
        (StoreRefused("x"), exits.USAGE),
        (TransportUnavailable("x"), exits.UNAVAILABLE),
        (StoreUnavailable("x"), exits.UNAVAILABLE),
        (TransportClosed("x"), exits.FAILED),
        (TidewireError("x"), exits.FAILED),
    ],
)
def test_the_exit_code_says_who_can_cure_it(error: TidewireError, code: int) -> None:
    """2: a person must change something; 3: time may help; 1: the rest."""
    assert code == exit_code(error)


def test_help_loads_no_adapter_and_no_command() -> None:
    """``--help`` is quick: it loads no transport, no store, no runtime, no command and no event loop."""
    script = "import sys; from tidewire.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr.split()
    rooms = ("transports", "stores", "runtime", "config", "cli.demo", "cli.run", "testing")
    assert [] == [name for name in loaded if name.startswith(tuple(f"tidewire.{room}" for room in rooms))]
    assert "sqlite3" not in loaded


def test_a_reader_that_went_away_causes_no_traceback() -> None:
    """``tidewire --help | head -0`` ends without a word."""
    command = f"{sys.executable} -u -m tidewire.cli --help | true"
    answer = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert "" == answer.stderr


@pytest.mark.parametrize(
    ("given", "hint"), [("runn", "did you mean 'run'?"), ("demmo", "did you mean 'demo'?"), ("zzz", "")]
)
def test_did_you_mean_guesses_only_what_is_near(given: str, hint: str) -> None:
    """A guess is made where it is likely to be right, else none."""
    assert hint == did_you_mean(given, ["run", "demo"])


def test_a_parser_names_a_missing_argument(capsys: pytest.CaptureFixture[str]) -> None:
    """What argparse finds wrong reads like every other error and ends with exit 2."""
    parser = CommandParser("tidewire x", "X.")
    parser.add_argument("target")
    with pytest.raises(SystemExit) as stop:
        parser.parse_all([])
    assert exits.USAGE == stop.value.code
    assert capsys.readouterr().err.startswith("error: tidewire x: the following arguments are required: target\nhint: ")
