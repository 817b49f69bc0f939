"""Finds the services of a project: ``python -m tidewire.cli.dev.scan [TARGET …]``, one JSON object on stdout.

A process of its own, so that what a module does when it is imported, ending the process included, happens there,
and so that every look sees the code as it is now.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tidewire.cli.dev.example import example_of
from tidewire.cli.dev.found import Found, Problem, Scan
from tidewire.cli.dev.watch import python_files
from tidewire.cli.target import find_service, import_roots, services_in
from tidewire.errors import TidewireError
from tidewire.rules.events import EventType
from tidewire.runtime.service import Service

__all__ = ["main", "scan"]

_MAKES_SERVICE = re.compile(rb"\bService\s*\(")
_NOT_SHIPPED = re.compile(r"(^|\.)(tests?|test_\w+|\w+_test|conftest|setup|noxfile|__main__)(\.|$)")


def main(targets: Sequence[str]) -> int:
    """Look, print, and return 0; problems of the project are part of the answer."""
    told = os.dup(1)
    os.dup2(2, 1)  # what modules print while they are imported is not the answer
    with os.fdopen(told, "wb") as answer:
        answer.write(msgspec.json.encode(scan(targets)))
    return 0


def scan(targets: Sequence[str]) -> Scan:
    """Import what *targets* name, or else every module of the working directory that makes a service."""
    found: list[tuple[Found, Service]] = []
    problems: list[Problem] = []
    for module, target in [(one.partition(":")[0], one) for one in targets] or [(one, "") for one in modules()]:
        try:
            if target:
                named = [(target, find_service(target))]
            else:
                named = [(f"{module}:{name}", service) for name, service in services_in(module).items()]
        except TidewireError as error:
            problems.append(Problem(module, error.message, error.hint))
        except SystemExit as stop:
            problems.append(Problem(module, f"module {module!r} ends the process when it is imported ({stop.code})"))
        else:
            known = {id(service) for _, service in found}
            found += [(_found(module, where, one), one) for where, one in named if id(one) not in known]
    services: dict[str, Found] = {}
    for one, _ in found:
        other = services.setdefault(one.name, one)
        if other is not one:
            twice = f"{other.target} and {one.target} are both named {one.name!r}"
            problems.append(Problem(one.module, twice, "a service's name is its group: give each its own"))
    example = _example([service for _, service in found])
    return Scan(services=tuple(services.values()), problems=tuple(problems), example=example)


def modules() -> Iterator[str]:
    """Return the modules below the roots that seem to make a service: in packages, or files on the top."""
    for root in import_roots():
        for entry in sorted(python_files(root), key=lambda entry: entry.path):
            path = Path(entry.path)
            parts = path.relative_to(root).with_suffix("").parts
            packages = all((root.joinpath(*parts[:depth]) / "__init__.py").exists() for depth in range(1, len(parts)))
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            importable = packages and all(part.isidentifier() for part in parts) and not _NOT_SHIPPED.search(name)
            if importable and _MAKES_SERVICE.search(path.read_bytes()):
                yield name


def _found(module: str, target: str, service: Service) -> Found:
    topics = sorted({one.event.topic for one in service.handlers if one.event.kind == "integration"})
    return Found(name=service.name, module=module, target=target, topics=tuple(topics))


def _example(services: Sequence[Service]) -> str:
    """Return a command that publishes an event from outside: one that somebody waits for and nobody returns."""
    handlers = [one for service in services for one in service.handlers if one.event.kind == "integration"]
    returned = " ".join(str(one.function.__annotations__.get("return", "")) for one in handlers)
    wanted: list[EventType] = [one.event for one in handlers]
    wanted.sort(key=lambda event: event.cls.__name__ in returned)
    for event in wanted:
        data = example_of(event)
        if data:
            return f"tidewire publish {event.cls.__module__}:{event.cls.__qualname__} --data {shlex.quote(data)}"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
