"""``tidewire``: finds the command, loads only that, and turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tidewire.cli.exits import FAILED, INTERRUPTED, OK, USAGE, did_you_mean, exit_code, tell
from tidewire.errors import TidewireError

__all__ = ["COMMANDS", "command_of", "main"]

Command: TypeAlias = Callable[[Sequence[str]], int]

# Each command: ``module`` or ``module:function`` of its ``main(arguments) -> exit code``, loaded when it is chosen,
# and its one line.
COMMANDS: dict[str, tuple[str, str]] = {
    "bench": ("tidewire.cli.bench", "how fast this broker is, here and now"),
    "bridge": ("tidewire.cli.bridge", "copies topics to another broker, live, for a migration"),
    "check": ("tidewire.cli.check", "what is promised to every subscription; unsafe settings are refused"),
    "completion": ("tidewire.cli.completion", "a script that completes commands and options in your shell"),
    "config": ("tidewire.cli.config", "the settings that hold here, and where each comes from"),
    "crashtest": ("tidewire.cli.crashtest", "dies at every point of your handlers, and says which repeats an effect"),
    "demo": ("tidewire.cli.demo.options", "a shop of five services, killed on the way, and books that balance"),
    "describe": ("tidewire.cli.describe", "handlers, events in and out, retries in words; opens nothing"),
    "dev": ("tidewire.cli.dev.command", "all services of a project, with reload and one merged log"),
    "dlq": ("tidewire.cli.dlq", "dead letters: list, show, redrive, mend, discard"),
    "doctor": ("tidewire.cli.doctor", "what is wrong with this environment, its broker and store, each with the fix"),
    "find": ("tidewire.cli.find:find", "where an event is, by its id, and how far each group is with it"),
    "groups": ("tidewire.cli.groups", "who reads what, how far behind, and who owns which lane"),
    "inbox": ("tidewire.cli.inbox", "the marks by which a store knows what has taken effect; prune old ones"),
    "new": ("tidewire.cli.new", "a project that runs and passes its own tests at once"),
    "outbox": ("tidewire.cli.outbox", "what a store has still to publish, and what the broker would not take"),
    "publish": ("tidewire.cli.publish", "an event from JSON, checked against its class"),
    "relay": ("tidewire.cli.relay", "publish a store's outbox, and nothing else"),
    "replay": ("tidewire.cli.replay", "give a group events once more, from a time or a position"),
    "run": ("tidewire.cli.run", "one service, in production: broker and store from the environment"),
    "store": ("tidewire.cli.store", "the tables in a service's own database: status, upgrade, or their SQL"),
    "tail": ("tidewire.cli.tail", "events as they are stored"),
    "topics": ("tidewire.cli.topics", "what topics there are; make one"),
    "trace": ("tidewire.cli.find:trace", "what an event caused, and what caused it"),
}

USAGE_TEXT = """\
usage: tidewire [--help] [--version] COMMAND ...

Robust event-driven microservices.

commands:
{commands}

`tidewire COMMAND --help` tells what a command takes.

exit codes:
  0    done
  1    the thing itself failed: a check refuses, the books do not balance, a worker keeps crashing
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
    return command_of(given[0])(given[1:])


def command_of(name: str) -> Command:
    """Load one of `COMMANDS` and return what runs it."""
    module, _, function = COMMANDS[name][0].partition(":")
    command: Command = getattr(importlib.import_module(module), function or "main")
    return command


def _usage() -> str:
    return USAGE_TEXT.format(commands="\n".join(f"  {name:<10} {line}" for name, (_, line) in COMMANDS.items()))


def _version() -> str:
    import platform
    import sqlite3
    from importlib.metadata import version

    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"tidewire {version('tidewire')} ({python}, SQLite {sqlite3.sqlite_version})"


def _code(stop: SystemExit) -> int:
    """Return the code of an exit that argparse asked for; ``--help`` of a command is one."""
    return stop.code if isinstance(stop.code, int) else OK if stop.code is None else FAILED
