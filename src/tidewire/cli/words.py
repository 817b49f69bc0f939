"""What can be said to a command, as values: what completion scripts are made of."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = ["Option", "Words"]


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option: its *names*, its one *line*, whether it *takes* a value, and which: one of *choices*, or *files*."""

    names: tuple[str, ...]
    line: str
    takes: bool = False
    choices: tuple[str, ...] = ()
    files: bool = False


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """What can come after *at*: a command, or a command and its verb, or nothing at all.

    *choices* are words with their lines; with *verbs* each of them opens a place of its own.
    """

    at: str
    line: str
    choices: Mapping[str, str] = {}
    options: tuple[Option, ...] = ()
    files: bool = False
    verbs: bool = False

    @property
    def flags(self) -> list[str]:
        """Every spelling of every option."""
        return [name for option in self.options for name in option.names]
