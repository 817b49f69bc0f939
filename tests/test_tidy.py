"""What a machine can check of the style: budgets, banned calls, docstrings, leftovers.

The exceptions stand in `tidy_exceptions.py`, one line each with its reason. A new line is a review topic; a line that
is no longer needed fails `test_no_exception_is_stale`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import pytest

from source_tree import ROOT, Module, planted, python_files, sources
from tidy_exceptions import EXCEPTIONS

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
PARAMETERS_MAX = 6
POSITIONAL_MAX = 2
# Constructors and private helpers are called from one or two places that are read together with them.
POSITIONAL_NEAR_MAX = 4

# One rule per name: full dotted names, or their beginnings where they end in a dot.
BANNED: dict[str, tuple[str, ...]] = {
    "time": (
        "time.time",
        "time.time_ns",
        "time.monotonic",
        "time.monotonic_ns",
        "time.perf_counter",
        "time.perf_counter_ns",
        "time.clock_gettime",
        "time.clock_gettime_ns",
        "datetime.datetime.now",
        "datetime.datetime.utcnow",
        "datetime.datetime.today",
        "datetime.date.today",
    ),
    "chance": ("random.", "uuid.uuid1", "uuid.uuid4", "os.urandom", "secrets."),
    "task": ("asyncio.create_task", "asyncio.ensure_future"),
    "environment": ("os.environ", "os.getenv", "os.putenv"),
    "print": ("print", "sys.exit", "sys.stdout", "sys.stderr"),
    "sleep": ("time.sleep",),
    "unsafe": ("pickle.", "marshal.", "shelve.", "eval", "exec", "yaml.load", "os.system", "os.popen"),
    "dynamic import": ("importlib.import_module", "__import__"),
}
RULES = (
    "file length",
    "function length",
    "parameters",
    "positional",
    "unbounded",
    "broad except",
    "typing",
    "docstring",
    "test docstring",
    "empty name",
    "log",
    "leftover",
)
TYPING_HOLES = frozenset({"typing.Any", "typing.cast"})
EMPTY_NAMES = re.compile(r"^(Base|Abstract)[A-Z]|(Manager|Utils?|Common|Impl|Helper|Data)$")
LEFTOVER = re.compile(r"\b(?:FIX" + r"ME|TO" + r"DO)\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:wor" + r"k|ro" + r"ot|home/\w+)/")
IGNORES = re.compile(r"#\s*(?:type:\s*ignore|pyright:\s*ignore|mypy:)")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Finding:
    """One breach: the rule, the place and what is wrong there."""

    rule: str
    path: str
    line: int
    what: str
    function: str = ""

    @property
    def places(self) -> list[str]:
        """The keys under which an exception may be listed: the function, the file, the folders above it."""
        folders = [self.path[: cut + 1] for cut in range(len(self.path)) if self.path[cut] == "/"]
        return [f"{self.path}::{self.function}", self.path, *folders]

    def __str__(self) -> str:
        where = f" in {self.function}" if self.function else ""
        return f"{self.path}:{self.line}: {self.rule}: {self.what}{where}"


Checker = Callable[[Module], Iterator[Finding]]


@cache
def functions(module: Module) -> list[tuple[str, Function, bool]]:
    """Return every function with its dotted name, and whether it is a method."""

    def walk(node: ast.AST, prefix: str, in_class: bool) -> Iterator[tuple[str, Function, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield f"{prefix}{child.name}", child, in_class
                yield from walk(child, f"{prefix}{child.name}.", False)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.", True)
            else:
                yield from walk(child, prefix, in_class)

    return list(walk(module.tree, "", False))


def owner_of(module: Module, line: int) -> str:
    """Return the dotted name of the innermost function around *line*, or nothing at module level."""
    around = [name for name, node, _ in functions(module) if node.lineno <= line <= (node.end_lineno or line)]
    return around[-1] if around else ""


def own_lines(node: Function) -> int:
    """Return how many lines a function has, its docstring not counted."""
    first, last = node.lineno, node.end_lineno or node.lineno
    head = node.body[0]
    spoken = ast.get_docstring(node) is not None
    return last - first + 1 - ((head.end_lineno or head.lineno) - head.lineno + 1 if spoken else 0)


# --- the checkers ---------------------------------------------------------------------------------------------


def lengths(module: Module) -> Iterator[Finding]:
    """A file has one subject, a function fits on one screen."""
    count = module.text.count("\n")
    if count > FILE_LINES_MAX:
        yield Finding("file length", module.path, 1, f"{count} lines")
    for name, node, _ in functions(module):
        if own_lines(node) > FUNCTION_LINES_MAX:
            yield Finding("function length", module.path, node.lineno, f"{own_lines(node)} lines", name)


def parameters(module: Module) -> Iterator[Finding]:
    """At most six parameters, in public keyword-only beyond the second; dunder methods follow their protocol."""
    for name, node, is_method in functions(module):
        if node.name.startswith("__") and node.name != "__init__":
            continue
        bound = is_method and not any(ast.unparse(mark) == "staticmethod" for mark in node.decorator_list)
        positional = len(node.args.posonlyargs) + len(node.args.args) - bound
        total = positional + len(node.args.kwonlyargs)
        if total > PARAMETERS_MAX:
            yield Finding("parameters", module.path, node.lineno, f"{total} parameters", name)
        near = any(part.startswith("_") for part in name.split("."))
        if positional > (POSITIONAL_NEAR_MAX if near else POSITIONAL_MAX):
            yield Finding("positional", module.path, node.lineno, f"{positional} positional parameters", name)


def banned_calls(module: Module) -> Iterator[Finding]:
    """Each banned name has one place where it belongs."""
    for node, name in dotted_names(module):
        for rule, names in BANNED.items():
            hit = any(name == banned or (banned.endswith(".") and name.startswith(banned)) for banned in names)
            if hit and name not in {"random.Random", "random.SystemRandom"}:
                yield Finding(rule, module.path, node.lineno, name, owner_of(module, node.lineno))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield from _banned_shapes(module, node)


def _banned_shapes(module: Module, call: ast.Call) -> Iterator[Finding]:
    called, owner = spelled(ast.unparse(call.func), aliases_of(module)), owner_of(module, call.lineno)
    if called.endswith((".create_task", ".ensure_future")) and re.search(r"loop(\(\))?\.\w+$", called):
        yield Finding("task", module.path, call.lineno, called, owner)
    if any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in call.keywords):
        yield Finding("unsafe", module.path, call.lineno, "shell=True", owner)
    if re.search(r"^(asyncio|queue|multiprocessing)\.\w*Queue(\[.*\])?$", called):
        bounds = [ast.unparse(size) for size in [*call.args, *(word.value for word in call.keywords)]]
        if not bounds or bounds[0] in {"0", "-1"}:
            yield Finding("unbounded", module.path, call.lineno, f"{called} without a size", owner)


def dotted_names(module: Module) -> Iterator[tuple[ast.expr, str]]:
    """Return every name and attribute chain that is read, spelled as it was imported."""
    aliases = aliases_of(module)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            chain = dotted(node)
            if chain:
                yield node, spelled(chain, aliases)


def dotted(node: ast.expr) -> str:
    """Return a chain of names, calls left out: ``random.Random().uniform`` is ``random.Random.uniform``."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute | ast.Call):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


@cache
def aliases_of(module: Module) -> dict[str, str]:
    """Return for each imported name its full spelling."""
    aliases: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return aliases


def spelled(text: str, aliases: dict[str, str]) -> str:
    """Return a dotted expression with its first name spelled in full."""
    head, rest = re.match(r"(\w*)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    return aliases.get(head, head) + rest


def typing_holes(module: Module) -> Iterator[Finding]:
    """``Any``, ``cast`` and ignored type errors mean that the abstraction fights the types: listed by file."""
    for node, name in dotted_names(module):
        if name in TYPING_HOLES:
            yield Finding("typing", module.path, node.lineno, name.removeprefix("typing."))
    for number, line in enumerate(module.text.splitlines(), 1):
        if IGNORES.search(line):
            yield Finding("typing", module.path, number, line.strip())


def broad_excepts(module: Module) -> Iterator[Finding]:
    """One place turns errors into outcomes; every other broad ``except`` is listed by its function."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = {"everything"} if node.type is None else set(re.findall(r"\w+", ast.unparse(node.type)))
        if caught & {"everything", "Exception", "BaseException"}:
            what = f"except {'' if node.type is None else ast.unparse(node.type)}".strip()
            yield Finding("broad except", module.path, node.lineno, what, owner_of(module, node.lineno))


def docstrings(module: Module) -> Iterator[Finding]:
    """Every public module, class, function and method says what it promises; the line ends with a full stop."""
    if ast.get_docstring(module.tree) is None and module.text.strip():
        yield Finding("docstring", module.path, 1, "the module has none")
    for name, node in public_definitions(module.tree, ""):
        said = ast.get_docstring(node)
        if said is None:
            yield Finding("docstring", module.path, node.lineno, "has none", name)
        elif not said.split("\n\n")[0].rstrip().endswith((".", ":", "?", "::")):
            yield Finding("docstring", module.path, node.lineno, "its first sentence does not end", name)


def public_definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Return the public classes, functions and methods below *node*; overloads speak through the last one."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try):
            yield from public_definitions(child, prefix)
        if not isinstance(child, ast.ClassDef | Function) or child.name.startswith("_"):
            continue
        if any(ast.unparse(mark) in {"overload", "typing.overload"} for mark in child.decorator_list):
            continue
        if any(ast.unparse(mark).endswith((".setter", ".deleter")) for mark in child.decorator_list):
            continue
        yield f"{prefix}{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from public_definitions(child, f"{prefix}{child.name}.")


def spoken_tests(module: Module) -> Iterator[Finding]:
    """Every test states its rule as a sentence."""
    for name, node, _ in functions(module):
        said = ast.get_docstring(node) or ""
        if node.name.startswith("test_") and not said.rstrip().endswith((".", "!", "?")):
            yield Finding("test docstring", module.path, node.lineno, "no sentence", name)


def names(module: Module) -> Iterator[Finding]:
    """Names that only say "there is code here" are refused."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and EMPTY_NAMES.search(node.name):
            yield Finding("empty name", module.path, node.lineno, node.name)


def logs(module: Module) -> Iterator[Finding]:
    """A log line is an event with fields: its name a constant that begins with ``tidewire.``, values in extra."""
    levels = "debug|info|warning|error|critical|exception"
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or not re.search(rf"(^|[._])log(ger)?\.({levels})$", ast.unparse(node.func)):
            continue
        head = node.args[0] if node.args else None
        named = isinstance(head, ast.Constant) and str(head.value).startswith("tidewire.")
        if not named or len(node.args) > 1:
            yield Finding("log", module.path, node.lineno, ast.unparse(node)[:80], owner_of(module, node.lineno))


def leftovers(module: Module) -> Iterator[Finding]:
    """Nothing is left for later in a comment, and no path of one machine stands in a file."""
    for number, line in enumerate(module.text.splitlines(), 1):
        if LEFTOVER.search(line) or MACHINE_PATH.search(line):
            yield Finding("leftover", module.path, number, line.strip()[:80])


SHIPPED: tuple[Checker, ...] = (
    lengths,
    parameters,
    banned_calls,
    typing_holes,
    broad_excepts,
    docstrings,
    names,
    logs,
    leftovers,
)
BESIDE: tuple[Checker, ...] = (lengths, spoken_tests, leftovers)


def beside() -> list[Module]:
    """Return the Python files that are not shipped: tests, benchmarks, scripts, examples."""
    return [*python_files("tests", "benchmarks", "scripts", "examples")]


@cache
def findings() -> tuple[Finding, ...]:
    """Return every breach in the repository, the excepted ones included."""
    shipped = [found for module in sources() for check in SHIPPED for found in check(module)]
    others = [found for module in beside() for check in BESIDE for found in check(module)]
    return (*shipped, *others)


def excepted(found: Finding) -> bool:
    """Say whether an exception covers a finding."""
    return any((found.rule, place) in EXCEPTIONS for place in found.places)


def unused_exports(modules: Sequence[Module], texts: Sequence[tuple[str, str]]) -> list[str]:
    """Return the names in ``__all__`` that no other file of *texts* (path, text) ever says."""
    words = {path: set(re.findall(r"\w+", text)) for path, text in texts}
    return [
        f"{module.path}: {name}"
        for module in modules
        for name in exports(module)
        if not any(name in spoken for path, spoken in words.items() if path != module.path)
    ]


def exports(module: Module) -> list[str]:
    """Return what a module lists in ``__all__``."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


# --- the tests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [*RULES, *BANNED])
def test_the_style_is_kept(rule: str) -> None:
    """Each rule of the style that a machine can check holds, but for the listed exceptions."""
    assert [] == [str(found) for found in findings() if found.rule == rule and not excepted(found)]


def test_no_exception_is_stale() -> None:
    """A listed exception that nothing needs any more is removed."""
    needed = {(found.rule, place) for found in findings() for place in found.places}
    assert [] == [key for key in EXCEPTIONS if key not in needed]


def test_every_exception_has_a_reason() -> None:
    """An exception without a reason is no exception."""
    assert [] == [key for key, reason in EXCEPTIONS.items() if len(reason.split()) < 3]


def test_no_public_name_is_unused() -> None:
    """What a module exports is used, tested or documented somewhere else."""
    texts = [(module.path, module.text) for module in [*sources(), *beside()]]
    texts += [(str(path), path.read_text("utf-8")) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]]
    assert [] == unused_exports(sources(), texts)


# --- the checkers bite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "rule", "text"),
    [
        (lengths, "file length", "x = 1\n" * 501),
        (lengths, "function length", "def f():\n" + "    x = 1\n" * 60),
        (parameters, "parameters", "def f(a, b, *, c, d, e, f, g): ..."),
        (parameters, "positional", "def f(a, b, c): ..."),
        (parameters, "positional", "def _f(a, b, c, d, e): ..."),
        (parameters, "positional", "class A:\n    def f(self, a, b, c): ..."),
        (banned_calls, "time", "from datetime import datetime\nx = datetime.now()"),
        (banned_calls, "time", "import time as t\nx = t.monotonic"),
        (banned_calls, "chance", "from random import choice\nchoice([1])"),
        (banned_calls, "chance", "import uuid\nuuid.uuid4()"),
        (banned_calls, "task", "from asyncio import create_task\ncreate_task(f())"),
        (banned_calls, "task", "asyncio.get_running_loop().create_task(f())"),
        (banned_calls, "environment", "import os\nhome = os.environ['HOME']"),
        (banned_calls, "print", "print('here')"),
        (banned_calls, "sleep", "from time import sleep\nsleep(1)"),
        (banned_calls, "unsafe", "import pickle\npickle.loads(b'')"),
        (banned_calls, "unsafe", "import subprocess\nsubprocess.run('ls', shell=True)"),
        (banned_calls, "unbounded", "import asyncio\nq = asyncio.Queue[int]()"),
        (banned_calls, "unbounded", "from queue import SimpleQueue\nq = SimpleQueue()"),
        (banned_calls, "dynamic import", "import importlib\nimportlib.import_module('x')"),
        (typing_holes, "typing", "from typing import Any\nx: Any = 1"),
        (typing_holes, "typing", "x = 1  # type: ig" + "nore[assignment]"),
        (broad_excepts, "broad except", "try:\n    f()\nexcept:\n    pass"),
        (broad_excepts, "broad except", "try:\n    f()\nexcept (ValueError, Exception):\n    pass"),
        (docstrings, "docstring", '"""A module."""\nclass Open: ...'),
        (docstrings, "docstring", '"""A module."""\ndef f():\n    """Words without an end"""'),
        (spoken_tests, "test docstring", "def test_x(): ..."),
        (names, "empty name", "class LaneManager: ..."),
        (logs, "log", "logger.error(f'failed {event}')"),
        (logs, "log", "self._log.info('tidewire.x.y %s', 1)"),
        (leftovers, "leftover", "x = 1  # TO" + "DO"),
        (leftovers, "leftover", "x = '/ro" + "ot/x'"),
    ],
)
def test_a_breach_is_found(check: Checker, rule: str, text: str) -> None:
    """Every checker bites on a planted breach."""
    assert [rule] == sorted({found.rule for found in check(planted(text))})


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (parameters, "class A:\n    def f(self, a, b, *, c, d, e, f): ..."),
        (parameters, "class A:\n    async def __aexit__(self, kind, error, trace): ..."),
        (banned_calls, "import random\ndef f(chance: random.Random): ..."),
        (banned_calls, "async with asyncio.TaskGroup() as tasks:\n    tasks.create_task(f(), name='f')"),
        (banned_calls, "import asyncio\nq = asyncio.Queue[int](maxsize=8)"),
        (banned_calls, "from here import Queue\nq = Queue()"),
        (broad_excepts, "try:\n    f()\nexcept OSError:\n    raise"),
        (logs, "logger.warning('tidewire.relay.refused', extra={'row': 1})"),
        (docstrings, '"""A module."""\n@overload\ndef f(): ...\ndef _g(): ...'),
    ],
)
def test_good_style_is_let_through(check: Checker, text: str) -> None:
    """The checkers let through what the style asks for."""
    assert [] == [str(found) for found in check(planted(text))]


def test_an_unused_export_is_found() -> None:
    """The export checker bites on a name that only its own file says."""
    module = planted('__all__ = ["used", "unused"]')
    assert [f"{module.path}: unused"] == unused_exports([module], [("other.py", "used()"), (module.path, module.text)])
