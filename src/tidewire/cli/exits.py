"""How a command ends: its exit code, and errors as people read them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from typing import NoReturn

from tidewire.errors import (
    ConfigurationError,
    StoreRefused,
    StoreUnavailable,
    TidewireError,
    TransportRefused,
    TransportUnavailable,
)

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "OK",
    "UNAVAILABLE",
    "USAGE",
    "CommandParser",
    "did_you_mean",
    "exit_code",
    "parser_of",
    "tell",
    "warn",
    "whole_number",
]

OK = 0
FAILED = 1
USAGE = 2
UNAVAILABLE = 3
INTERRUPTED = 130


def exit_code(error: TidewireError) -> int:
    """Return the exit code for *error*: who can cure it decides.

    `USAGE` where a person must change something, `UNAVAILABLE` where time may help, `FAILED` for the rest.
    """
    if isinstance(error, ConfigurationError | TransportRefused | StoreRefused):
        return USAGE
    if isinstance(error, TransportUnavailable | StoreUnavailable):
        return UNAVAILABLE
    return FAILED


def tell(message: str, *, hint: str = "") -> None:
    """Write an error for people to stderr: what is wrong, and on its own line the fix."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return what reads an argument that is a whole number of at least *least*, and at most *most*."""
    said = f"a whole number from {least}" + (" on" if most is None else f" to {most}")

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {said}") from None
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not {said}")
        return number

    return read


def warn(message: str) -> None:
    """Write on stderr what a person should know although the command goes on."""
    print(f"warning: {message}", file=sys.stderr)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a question that names the nearest of *known*, or nothing where none is near."""
    near = get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


_CODES = """\
exit codes: 0 done, 1 it failed, 2 a person must change something, 3 the broker or the store is unavailable
"""


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors read like all others, and which guesses no abbreviations.

    Help that says nothing of exit codes gets a line about them.
    """

    def __init__(self, prog: str, description: str, *, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog if "exit code" in epilog else f"{epilog.rstrip()}\n\n{_CODES}".lstrip(),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    @property
    def arguments(self) -> Sequence[argparse.Action]:
        """What it takes: options and positional arguments, in order."""
        return self._actions

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse *arguments*, all of them; an unknown one ends the command with the nearest known one."""
        if _showing.get():
            raise _Shown(self)
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            tell(f"{self.prog}: unknown argument {unknown[0]!r}", hint=self._hint(unknown[0]))
            raise SystemExit(USAGE)
        return found

    def error(self, message: str) -> NoReturn:
        """End the command: *message*, a hint to the help, exit code 2."""
        tell(f"{self.prog}: {message}", hint=f"`{self.prog} --help` lists what it takes")
        raise SystemExit(USAGE)

    def _hint(self, given: str) -> str:
        known = re.findall(r"--[a-z][a-z-]*", self.format_help())
        return did_you_mean(given.split("=")[0], known) or f"`{self.prog} --help` lists what it takes"


def parser_of(command: Callable[[Sequence[str]], int]) -> CommandParser:
    """Return the parser with which *command*, the ``main`` of one, parses its arguments; nothing else is done."""
    token = _showing.set(True)
    try:
        command([])
    except _Shown as shown:
        return shown.parser
    finally:
        _showing.reset(token)
    raise AssertionError(f"{command.__module__} does something before it parses its arguments")


class _Shown(Exception):
    """The way out of a command that was called for its parser."""

    def __init__(self, parser: CommandParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


_showing: ContextVar[bool] = ContextVar("showing", default=False)
