"""What was found in a project: services, their topics, what could not be imported. Values between processes."""

from __future__ import annotations

import msgspec

__all__ = ["Found", "Job", "Problem", "Scan"]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One service: *module* and *target* are where it is, *topics* what it subscribes to."""

    name: str
    module: str
    target: str
    topics: tuple[str, ...]


class Problem(msgspec.Struct, frozen=True):
    """Why a module, or something in it, cannot be used, and what to do."""

    module: str
    message: str
    hint: str = ""


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. *example* is a command that publishes an event that somebody here waits for, or nothing."""

    services: tuple[Found, ...] = ()
    problems: tuple[Problem, ...] = ()
    example: str = ""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What one process of ``dev`` is to run; *report* is the file descriptor it tells on."""

    target: str
    settings: dict[str, object]
    report: int
