"""``tidewire completion SHELL``: a script that completes commands, verbs, options and choices.

Made from the parsers themselves, so that it cannot be out of date, and whole: no Python runs when a key is pressed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

import msgspec

from tidewire.cli.exits import OK, CommandParser, parser_of
from tidewire.cli.shells import bash, fish, zsh
from tidewire.cli.shown import emit
from tidewire.cli.words import Option, Words

__all__ = ["main", "words_of"]

SHELLS: Mapping[str, Callable[[Sequence[Words]], str]] = {"bash": bash, "fish": fish, "zsh": zsh}

DESCRIPTION = """\
Print a script that completes tidewire's commands, verbs, options and choices in your shell.
"""
EPILOG = """\
examples:
  tidewire completion bash
  tidewire completion zsh --json

for good:
  bash  echo 'source <(tidewire completion bash)' >> ~/.bashrc
  zsh   echo 'source <(tidewire completion zsh)' >> ~/.zshrc
  fish  tidewire completion fish > ~/.config/fish/completions/tidewire.fish

Make it again after an upgrade where it is kept in a file.
"""
_FILES = frozenset({"FILE", "DIR"})


def main(arguments: Sequence[str]) -> int:
    """Print the script, or what it is made of, and return the exit code."""
    parser = CommandParser("tidewire completion", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("shell", choices=tuple(SHELLS), help="whose script")
    parser.add_argument("--json", action="store_true", help="what the script is made of, as one JSON object")
    options = parser.parse_all(arguments)
    found = words_of()
    if options.json:
        emit({"shell": options.shell, "words": msgspec.to_builtins(found)})
    else:
        print(SHELLS[options.shell](found), end="")
    return OK


def words_of() -> list[Words]:
    """Return what can be said at each place: after ``tidewire``, after each command, after each verb of one."""
    from tidewire.cli.main import COMMANDS, command_of

    found = [Words(at="", line="", choices={name: line for name, (_, line) in COMMANDS.items()}, options=_ROOT)]
    for name, (_, line) in COMMANDS.items():
        command = command_of(name)
        verbs = getattr(sys.modules[command.__module__], "VERBS", {})
        if not verbs:
            found.append(_words(name, line, parser_of(command)))
            continue
        found.append(Words(at=name, line=line, choices={word: verb.line for word, verb in verbs.items()}, verbs=True))
        found += [_words(f"{name} {word}", verb.line, parser_of(verb.run)) for word, verb in verbs.items()]
    return found


_ROOT = (Option(names=("--help",), line="list the commands"), Option(names=("--version",), line="which version"))


def _words(at: str, line: str, parser: CommandParser) -> Words:
    shown = [one for one in parser.arguments if one.help != argparse.SUPPRESS]
    positional = [one for one in shown if not one.option_strings]
    choices = {str(choice): "" for one in positional for choice in one.choices or ()}
    options = tuple(_option(one, parser) for one in shown if one.option_strings)
    return Words(at=at, line=line, choices=choices, options=options, files=any(_names_file(one) for one in positional))


def _option(action: argparse.Action, parser: CommandParser) -> Option:
    return Option(
        names=tuple(action.option_strings),
        line=(action.help or "") % {**vars(action), "prog": parser.prog},
        takes=action.nargs != 0,
        choices=tuple(str(choice) for choice in action.choices or ()),
        files=_names_file(action),
    )


def _names_file(action: argparse.Action) -> bool:
    return isinstance(action.metavar, str) and action.metavar in _FILES
