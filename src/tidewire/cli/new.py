"""``tidewire new NAME``: a project that runs and passes its own tests at once."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from tidewire.cli.exits import OK, CommandParser
from tidewire.cli.shown import emit
from tidewire.errors import ConfigurationError

__all__ = ["TEMPLATES", "main", "rendered"]

TEMPLATES: dict[str, str] = {
    "minimal": "one event, one service, its tests",
    "fastapi": "a web application with an outbox, and a service",
    "multi-service": "three services that hear of one another through events",
}

DESCRIPTION = """\
Make a project in a new folder: events, services, tests, a README with three commands. It runs and passes its tests
at once. A folder that holds anything is refused; the project appears whole or not at all.
"""
EPILOG = """\
templates:
{templates}

examples:
  tidewire new shop
  tidewire new shop --template fastapi
  tidewire new services/shop --template multi-service --json
"""
_GRAMMAR = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*\Z")
_NAME_MAX = 40
_SUFFIX = ".tmpl"
# A package of one of these names would stand before what the project itself imports.
_TAKEN = frozenset({"tidewire", "tests", "test", "fastapi", "pydantic", "uvicorn", "starlette", "httpx", "pytest"})


def main(arguments: Sequence[str]) -> int:
    """Make the project and return the exit code.

    Raises:
        ConfigurationError: a name that cannot be, or a place that is taken or cannot be written.
    """
    listed = "\n".join(f"  {name:<14} {line}" for name, line in TEMPLATES.items())
    parser = CommandParser("tidewire new", DESCRIPTION, epilog=EPILOG.format(templates=listed))
    parser.add_argument("name", metavar="NAME", help="the project, or a path to it: its last part is the name")
    parser.add_argument("--template", choices=tuple(TEMPLATES), default="minimal", help="(default: minimal)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_all(arguments)
    folder = Path(options.name)
    if folder.resolve() == Path.cwd():
        raise ConfigurationError(
            "a project gets a folder of its own, made in one step", hint="name it: `tidewire new shop`"
        )
    package = _package(folder.name)
    files = rendered(options.template, package)
    _write(folder, files)
    commands = [f"cd {folder}", "pytest", "tidewire dev"]
    if options.json:
        made = {"name": package.replace("_", "-"), "package": package, "template": options.template}
        emit({**made, "folder": str(folder), "files": sorted(files), "next": commands})
    else:
        print(f"Made {folder} from the template {options.template}:")
        print("\n".join(f"  {folder / name}" for name in sorted(files)))
        print("\nNext:\n" + "\n".join(f"  {command}" for command in commands))
    return OK


def rendered(template: str, package: str) -> dict[str, str]:
    """Return the files of a project made from *template*: path below its folder → text."""
    from tidewire import __version__

    words = {"{{package}}": package, "{{name}}": package.replace("_", "-"), "{{version}}": __version__}
    found: dict[str, str] = {}
    for path, text in _shipped(resources.files("tidewire.cli").joinpath("templates", template), ""):
        for word, value in words.items():
            text = text.replace(word, value)
        place = re.sub(r"^package/", f"{package}/", path.removesuffix(_SUFFIX))
        found[".gitignore" if place == "gitignore" else place] = text
    return found


def _shipped(folder: Traversable, above: str) -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _shipped(entry, f"{above}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            yield above + entry.name, entry.read_text("utf-8")


def _package(name: str) -> str:
    """Return the name of the package.

    Raises:
        ConfigurationError: *name* cannot be one; the hint names one that can.
    """
    if not _GRAMMAR.match(name) or len(name) > _NAME_MAX:
        words = re.findall(r"[a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1-\2", name).lower())
        near = "-".join(words).lstrip("0123456789-")[:_NAME_MAX].rstrip("-")
        grammar = f"a-z first, then a-z, 0-9, single '-' or '_', at most {_NAME_MAX}"
        hint = f"`tidewire new {near}` would do; {grammar}" if near else f"names are {grammar}"
        raise ConfigurationError(f"{name!r} cannot name a project", hint=hint)
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or package in _TAKEN:
        raise ConfigurationError(
            f"{name!r} cannot name a project: Python would not find another {package!r}",
            hint=f"for example `tidewire new my-{name}`",
        )
    return package


def _write(folder: Path, files: dict[str, str]) -> None:
    """Make *folder* with *files*: beside it first, then moved into its place in one step.

    Raises:
        ConfigurationError: there is something already, or it cannot be written.
    """
    _check(folder)
    try:
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ConfigurationError(f"{folder.parent}: {error.strerror}", hint="name a folder you may write to") from None
    try:
        for name, text in files.items():
            path = beside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        beside.chmod((beside / "tests").stat().st_mode & 0o777)  # as the umask has it: mkdtemp is stricter
        os.rename(beside, folder)  # refused by the system where something has come there meanwhile
    except OSError as error:
        raise ConfigurationError(f"{folder} could not be made: {error.strerror}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check(folder: Path) -> None:
    if not folder.parent.is_dir():
        raise ConfigurationError(f"there is no folder {folder.parent}", hint=f"mkdir -p {folder.parent}")
    if not (folder.exists() or folder.is_symlink()):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ConfigurationError(f"{folder} is there already", hint="choose another name; nothing is overwritten")
    if any(folder.iterdir()):
        raise ConfigurationError(
            f"the folder {folder} is not empty", hint="choose another name, or empty it; nothing is overwritten"
        )
