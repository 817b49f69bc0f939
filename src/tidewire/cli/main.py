"""``tidewire``: finds the command, loads only that, and turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tidewire.cli.exits import FAILED, INTERRUPTED, OK, USAGE, did_you_mean, exit_code, tell
from tidewire.errors import TidewireError

__all__ = ["COMMANDS", "main"]

Command: TypeAlias = Callable[[Sequence[str]], int]

# Each command: the module with its ``main(arguments) -> exit code``, loaded when it is chosen, and its one line.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("tidewire.cli.demo.command", "a shop of five services, killed on the way, and books that balance"),
    "run": ("tidewire.cli.run", "one service, in production: broker and store from the environment"),
}

USAGE_TEXT = """\
usage: tidewire [--help] [--version] COMMAND ...

Robust event-driven microservices.

commands:
{commands}

`tidewire COMMAND --help` tells what a command takes.

exit codes:
  0    done
  1    the thing itself failed: the books do not balance, a worker keeps crashing
  2    a person must change something: arguments, settings, a refused file
  3    the broker or the store is unavailable: time may help
  130  interrupted from the keyboard
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; *arguments* default to those of the process.

    Errors that tidewire knows are told on stderr, with a hint. What it does not know is a bug and rises.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(given)
    except TidewireError as error:
        tell(error.message, hint=error.hint)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        return _code(stop)
    except BrokenPipeError:
        # Whoever read our output is gone (`tidewire --help | head`): nothing more can be said there.
        sys.stdout = None
        return FAILED


def _dispatch(given: list[str]) -> int:
    if not given:
        print(_usage(), end="", file=sys.stderr)
        return USAGE
    if given[0] in ("-h", "--help", "help"):
        print(_usage(), end="")
        return OK
    if given[0] in ("-V", "--version", "version"):
        print(_version())
        return OK
    if given[0] not in COMMANDS:
        hint = did_you_mean(given[0], COMMANDS) or "`tidewire --help` lists the commands"
        tell(f"there is no command {given[0]!r}", hint=hint)
        return USAGE
    command: Command = importlib.import_module(COMMANDS[given[0]][0]).main
    return command(given[1:])


def _usage() -> str:
    return USAGE_TEXT.format(commands="\n".join(f"  {name:<8} {line}" for name, (_, line) in COMMANDS.items()))


def _version() -> str:
    import platform
    import sqlite3
    from importlib.metadata import version

    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"tidewire {version('tidewire')} ({python}, SQLite {sqlite3.sqlite_version})"


def _code(stop: SystemExit) -> int:
    """Return the code of an exit that argparse asked for; ``--help`` of a command is one."""
    return stop.code if isinstance(stop.code, int) else OK if stop.code is None else FAILED
