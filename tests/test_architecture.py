"""The house: which room may import which, and that nothing runs in a circle.

Floors, from the ground: values (``errors model clock chance``), seams (``protocols``), ``rules``, ``kit`` (what
adapters share), adapters (``codecs transports stores registries middleware``), ``runtime``, ``config``,
``operations`` (what an operator does) and ``testing``, and on top ``cli``. Imports go down or stay in the room;
type-only ones count.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

import pytest

from source_tree import ROOT, Import, Module, planted, sources

VALUES = frozenset({"errors", "model", "clock", "chance"})
GROUND = VALUES | {"protocols"}
ADAPTERS = frozenset({"codecs", "transports", "stores", "registries", "middleware"})

# Who may import whom, besides itself. A room that is not in this table does not exist.
MAY_IMPORT: dict[str, frozenset[str]] = {
    **dict.fromkeys(VALUES, VALUES),
    "protocols": VALUES,
    "rules": GROUND,
    "kit": GROUND | {"rules"},
    "codecs": GROUND | {"rules", "kit"},
    "transports": GROUND | {"rules", "kit"},
    "stores": GROUND | {"rules", "kit"},
    "registries": GROUND | {"rules", "kit"},
    "middleware": GROUND,
    "runtime": GROUND | {"rules", "kit", "codecs", "middleware"},
    "config": GROUND | {"rules", "kit", "runtime"} | ADAPTERS,
    "operations": GROUND | {"rules", "kit", "codecs", "runtime", "config"},
    "testing": GROUND | {"rules", "kit", "runtime", "config", "operations", ""} | ADAPTERS,
    "cli": GROUND | {"rules", "kit", "runtime", "config", "operations", "testing", ""} | ADAPTERS,
    "integrations": GROUND | {"rules", "kit", "runtime", "config", "operations", ""},
    # The front door (`import tidewire`) shows what users need; what it loads is tested below.
    "": GROUND | {"rules", "kit", "runtime", "config"} | ADAPTERS,
}

# In these rooms every adapter stands alone: a file or folder never imports its neighbour.
SEPARATE = frozenset({"transports", "stores", "registries", "middleware"})

# Other people's packages, and where they may be imported; msgspec may be used everywhere.
CLIENTS: dict[str, str | tuple[str, ...]] = {
    "aiormq": "tidewire.transports.rabbitmq.",  # the client of RabbitMQ: the protocol, as aio-pika speaks it
    "confluent_kafka": "tidewire.transports.kafka.",  # the client of Apache Kafka
    "cronsim": "tidewire.rules.recurrence",  # cron expressions, for whoever asks for tidewire[cron]
    "django": ("tidewire.kit.lent.django", "tidewire.integrations.django"),  # its connections, and its application
    "hypothesis": "tidewire.testing.codecs.",  # bodies nobody thought of, for whoever holds a codec to the suite
    "pamqp": "tidewire.transports.rabbitmq.",  # what the frames of that client are called
    # The driver of the store in PostgreSQL, and a cursor of our own on a caller's connection.
    "psycopg": (
        "tidewire.kit.postgres.",
        "tidewire.stores.postgres.",
        "tidewire.transports.postgres.",
        "tidewire.kit.handles.psycopg",
        "tidewire.config",
    ),
    "pytest": "tidewire.testing.",  # the plugin, which pytest loads, and suites whose cases skip and compare
    "sqlalchemy": "tidewire.kit.lent.sqlalchemy",  # sessions on the user's engine, watched
    "starlette": "tidewire.cli.demo.",  # the shop takes orders over HTTP
    "uvicorn": "tidewire.cli.demo.",  # and serves them
    "yarl": "tidewire.transports.rabbitmq.",  # what that client wants its URL to be
}

# Rules decide; they never wait, read a clock, draw lots, log or touch the world.
NOT_IN_RULES = frozenset(
    {"asyncio", "concurrent", "io", "logging", "multiprocessing", "os", "pathlib", "queue", "random", "secrets"}
    | {"select", "selectors", "shutil", "signal", "socket", "sqlite3", "subprocess", "tempfile", "threading", "time"}
)


def known_modules(modules: Iterable[Module]) -> frozenset[str]:
    """Return the names of *modules* and of the folders they lie in."""
    names = {module.name for module in modules}
    folders = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
    return frozenset(names | folders)


def room_of(module: str) -> str:
    """Return the room a module of tidewire is in; the front door is the empty name."""
    return module.split(".")[1] if "." in module else ""


def flat_of(module: str) -> str:
    """Return the adapter a module belongs to: its room and the name below it."""
    return ".".join(module.split(".")[1:3])


def may_import(module: str, target: str) -> bool:
    """Say whether *module* may import *target*, both of tidewire."""
    room, wanted = room_of(module), room_of(target)
    if room == wanted:
        alone = room in SEPARATE and module.count(".") > 1 and target.count(".") > 1
        return not alone or flat_of(module) == flat_of(target)
    return wanted in MAY_IMPORT[room]


def upward(modules: Sequence[Module]) -> list[str]:
    """Return every import that goes up, or across to a neighbour."""
    known = known_modules(sources()) | known_modules(modules)
    return [
        f"{module.path}:{found.line}: {module.name} imports {found.target}"
        for module in modules
        for found in module.imports(known)
        if found.target.split(".")[0] == "tidewire" and not may_import(module.name, found.target)
    ]


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the import circles of *graph* (Tarjan's strongly connected components), without self-imports."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            ring = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(ring) > 1:
                found.append(sorted(ring))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def graph_of(modules: Sequence[Module]) -> dict[str, list[str]]:
    """Return who imports whom inside *modules*, type-only and deferred imports included."""
    known = known_modules(modules)
    return {
        module.name: [found.target for found in module.imports(known) if found.target in known] for module in modules
    }


def foreign(modules: Sequence[Module]) -> list[str]:
    """Return every import of somebody else's package outside the place that is listed for it."""
    wrong: list[str] = []
    for module in modules:
        for found in module.imports(frozenset()):
            package = found.target.split(".")[0]
            if package in sys.stdlib_module_names or package in {"tidewire", "msgspec"}:
                continue
            if package == "typing_extensions" and found.type_only:
                continue
            if not module.name.startswith(CLIENTS.get(package, "nowhere")):
                wrong.append(f"{module.path}:{found.line}: {module.name} imports {package}")
    return wrong


def acting_rules(modules: Sequence[Module]) -> list[str]:
    """Return every place in the rules that waits, reads a clock, draws lots, logs or touches the world."""
    wrong: list[str] = []
    for module in modules:
        if room_of(module.name) != "rules":
            continue
        imported = [found for found in module.imports(frozenset()) if found.target.split(".")[0] in NOT_IN_RULES]
        wrong += [f"{module.path}:{found.line}: imports {found.target}" for found in imported]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
                wrong.append(f"{module.path}:{node.lineno}: {type(node).__name__}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"open", "print"}:
                wrong.append(f"{module.path}:{node.lineno}: {node.func.id}()")
    return wrong


def names_adapter(found: Import) -> bool:
    """Say whether an import names one adapter: a transport, a store or a registry."""
    return found.target.startswith(("tidewire.transports.", "tidewire.stores.", "tidewire.registries."))


# --- the rules of the house -----------------------------------------------------------------------------------


def test_every_room_is_in_the_table() -> None:
    """A new folder or file at the top of the package gets its floor before it gets its code."""
    rooms = {room_of(module.name) for module in sources()} - {"__main__"}
    assert set() == rooms - set(MAY_IMPORT)


def test_imports_go_down() -> None:
    """A module imports only from lower floors or from its own room, type-only imports included."""
    assert [] == upward(sources())


def test_there_is_no_import_circle() -> None:
    """No two modules import each other by any path, deferred and type-only imports included."""
    assert [] == circles(graph_of(sources()))


def test_rules_never_act() -> None:
    """Rules await nothing, read no clock, draw no lots, write no log and do no I/O."""
    assert [] == acting_rules(sources())


def test_client_libraries_stay_in_their_adapter() -> None:
    """The core needs the standard library and msgspec; each other package is imported in its one place."""
    assert [] == foreign(sources())


def test_only_config_knows_adapters_by_name() -> None:
    """Between the adapters and the screens ``config.adapters`` alone names them, inside the function that needs one."""
    modules = sources()
    known = known_modules(modules)
    wrong = [
        f"{module.path}:{found.line}: {module.name} imports {found.target}"
        for module in modules
        if room_of(module.name) in {"", "runtime", "config", "kit", "rules"}
        for found in module.imports(known)
        if names_adapter(found)
        and not (module.name == "tidewire.config.adapters" and (found.deferred or found.type_only))
    ]
    assert [] == wrong


def test_import_tidewire_loads_the_standard_library_and_msgspec() -> None:
    """``import tidewire`` loads no other package, no adapter, no event loop server and no command line."""
    script = "import sys; before = set(sys.modules); import tidewire; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    names = loaded.stdout.split()
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert {"tidewire", "msgspec"} == packages | {"msgspec"}
    assert [] == [name for name in names if name.startswith("tidewire.") and room_of(name) in ("cli", "testing")]
    assert [] == [name for name in names if names_adapter(Import(name, 0))]


# --- the checkers bite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tidewire.rules.planted", "from tidewire.runtime.service import Service"),
        ("tidewire.rules.planted", "if TYPE_CHECKING:\n    from tidewire.config import Settings"),
        ("tidewire.model", "def late():\n    import tidewire.protocols"),
        ("tidewire.transports.planted", "from tidewire.transports.memory import open_memory_transport"),
        ("tidewire.stores.planted.rows", "from tidewire.runtime import context"),
        ("tidewire.runtime.planted", "from tidewire.transports import memory"),
        ("tidewire.middleware.planted", "from tidewire import Service"),
        ("tidewire.kit.planted", "from ..runtime import context"),
    ],
)
def test_an_upward_import_is_found(name: str, text: str) -> None:
    """The floor checker bites: plain, type-only, deferred, relative and sideways imports."""
    assert 1 == len(upward([planted(text, name=name)]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tidewire.transports.planted.log", "from tidewire.transports.planted.names import lane_of"),
        ("tidewire.transports.planted", "from tidewire.kit.lanes import lease"),
        ("tidewire.config", "def late():\n    from tidewire.transports.memory import open_memory_transport"),
    ],
)
def test_an_import_that_goes_down_is_let_through(name: str, text: str) -> None:
    """The floor checker lets through what stays in one adapter or goes down."""
    assert [] == upward([planted(text, name=name)])


def test_a_circle_is_found() -> None:
    """The circle checker bites, on a type-only circle of three as well."""
    ring = [
        planted("import tidewire.b", name="tidewire.a"),
        planted("def late():\n    from tidewire import c", name="tidewire.b"),
        planted("if TYPE_CHECKING:\n    from tidewire.a import thing", name="tidewire.c"),
        planted("import tidewire.a", name="tidewire.d"),
    ]
    assert [["tidewire.a", "tidewire.b", "tidewire.c"]] == circles(graph_of(ring))


@pytest.mark.parametrize(
    "text",
    ["import asyncio", "from time import monotonic", "import logging.config", "async def f(): ...", "open('x')"],
)
def test_a_rule_that_acts_is_found(text: str) -> None:
    """The rules checker bites: an import, an ``async def``, a file opened."""
    assert 1 == len(acting_rules([planted(text)]))


@pytest.mark.parametrize("text", ["import pydantic", "from uvicorn import Server", "def f():\n    import attrs"])
def test_a_stray_client_library_is_found(text: str) -> None:
    """The client checker bites, on deferred imports too."""
    assert 1 == len(foreign([planted(text, name="tidewire.runtime.planted")]))


def test_no_two_modules_of_tests_and_scripts_share_a_name() -> None:
    """They are imported by their bare names: of two with one name, a run of all tests would see the first alone."""
    found: dict[str, list[str]] = {}
    for folder in ("tests", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "conftest.py":
                found.setdefault(path.name, []).append(str(path.relative_to(ROOT)))
    assert [] == [paths for paths in found.values() if len(paths) > 1]
