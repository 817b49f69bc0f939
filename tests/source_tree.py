"""The sources as the house tests read them: each module parsed once, its imports resolved to module names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"


@dataclass(frozen=True)
class Import:
    """One imported module: *deferred* inside a function, *type_only* under ``if TYPE_CHECKING``."""

    target: str
    line: int
    deferred: bool = False
    type_only: bool = False


@dataclass(frozen=True)
class Module:
    """One source file; *name* is dotted for sources, a path for the rest."""

    name: str
    path: str
    text: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text, self.path)

    def imports(self, known: frozenset[str]) -> list[Import]:
        """Return every import in the file; ``from a import b`` is ``a.b`` where that is a module of *known*."""
        return list(_imports(self, self.tree, known, deferred=False, type_only=False))


def planted(text: str, *, name: str = "tidewire.rules.planted", path: str = "") -> Module:
    """Return a made-up source file, to show that a checker bites."""
    return Module(name, path or f"src/{name.replace('.', '/')}.py", text)


def python_files(*folders: str) -> list[Module]:
    """Return every Python file below *folders* of the repository, in order of their paths."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [_module(path) for path in paths]


def sources() -> list[Module]:
    """Return the shipped package, file by file."""
    return python_files("src")


def _module(path: Path) -> Module:
    relative = path.relative_to(ROOT).as_posix()
    if not path.is_relative_to(SRC):
        return Module(relative, relative, path.read_text("utf-8"))
    parts = path.relative_to(SRC).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    return Module(".".join(parts[:-1] if is_package else parts), relative, path.read_text("utf-8"), is_package)


def _imports(
    module: Module, node: ast.AST, known: frozenset[str], *, deferred: bool, type_only: bool
) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, deferred, type_only)
        elif isinstance(child, ast.ImportFrom):
            base = _base(module, child)
            for target in sorted({_target(base, alias.name, known) for alias in child.names}):
                yield Import(target, child.lineno, deferred, type_only)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            guarded = ast.Module(body=child.body, type_ignores=[])
            yield from _imports(module, guarded, known, deferred=deferred, type_only=True)
            rest = ast.Module(body=child.orelse, type_ignores=[])
            yield from _imports(module, rest, known, deferred=deferred, type_only=type_only)
        else:
            inside = deferred or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(module, child, known, deferred=inside, type_only=type_only)


def _base(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, *([node.module] if node.module else [])])


def _target(base: str, name: str, known: frozenset[str]) -> str:
    return f"{base}.{name}" if f"{base}.{name}" in known else base
