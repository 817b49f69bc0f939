"""The docs say what is so: every snippet runs, every command exists, every name is written down."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import get_args

import msgspec
import pytest

import tidewire.errors
from doc_pages import Block, Page, navigation, page, pages
from source_tree import ROOT, python_files, sources
from tidewire.cli.main import COMMANDS
from tidewire.config import Settings
from tidewire.model import FactKind, Reason

# Runs the Python blocks of a page in a project folder: a block that names a file is written there and imported,
# any other is executed; all share one module. Line numbers in a traceback are those of the page.
DRIVER = """
import importlib, json, pathlib, sys, types
page, blocks = json.load(sys.stdin)
sys.path.insert(0, "")
shared = types.ModuleType("page")
sys.modules["page"] = shared
for block in blocks:
    if block["file"]:
        path = pathlib.Path(block["file"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block["text"] + "\\n")
        importlib.invalidate_caches()
        if path.suffix == ".py":
            importlib.import_module(".".join(path.with_suffix("").parts))
        continue
    code = compile("\\n" * (block["line"] - 1) + block["text"], page, "exec")
    if not block["raises"]:
        exec(code, vars(shared))
        continue
    try:
        exec(code, vars(shared))
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        assert block["raises"] in kinds, f"{page}:{block['line']}: raised {error!r}, not {block['raises']}"
    else:
        raise AssertionError(f"{page}:{block['line']}: did not raise {block['raises']}")
"""


def run_blocks(name: str, blocks: Sequence[Block], project: Path) -> subprocess.CompletedProcess[str]:
    """Run the Python blocks of page *name* in *project*, one after another in one process."""
    told = [
        {
            "file": block.file_name,
            "line": block.line,
            "text": block.text,
            "raises": block.mark.removeprefix("raises: ") if block.mark.startswith("raises: ") else "",
        }
        for block in blocks
    ]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", DRIVER],
        input=json.dumps([name, told]),
        capture_output=True,
        text=True,
        cwd=project,
        timeout=120,
        check=False,
    )


def missing_commands(block: Block) -> list[str]:
    """Return the ``tidewire`` and ``make`` commands of a console block that do not exist, or whose options don't."""
    wrong: list[str] = []
    for command in block.commands:
        words = [word for word in shlex.split(command) if "=" not in word or word.startswith("-")]
        if len(words) < 2 or words[0] not in {"make", "tidewire"}:
            continue
        options = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
        if words[0] == "make":
            known = words[1] in make_targets()
        elif words[1] in {"--help", "--version"}:
            continue
        else:
            known = words[1] in COMMANDS and set(options) <= help_options(words[1])
        if not known:
            wrong.append(f"{block.page}:{block.line}: {command}")
    return wrong


@cache
def make_targets() -> frozenset[str]:
    """Return the targets of the Makefile."""
    return frozenset(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@cache
def help_of(command: str) -> str:
    """Return what ``tidewire COMMAND --help`` says."""
    asked = [sys.executable, "-m", "tidewire.cli", command, "--help"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


def help_options(command: str) -> frozenset[str]:
    """Return the options that a command's help names."""
    return frozenset(re.findall(r"--[a-z][a-z-]*", help_of(command)))


def log_names() -> set[str]:
    """Return the name of every log event in the sources."""
    pattern = re.compile(r"(^|[._])log(ger)?\.(debug|info|warning|error|critical|exception)$")
    return {
        str(node.args[0].value)
        for module in sources()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and pattern.search(ast.unparse(node.func))
        if node.args and isinstance(node.args[0], ast.Constant)
    }


def noted_texts() -> set[str]:
    """Return every text in the first arguments of ``Fact(…)`` and ``….note(…)`` in the runtime, choices included."""
    return {
        str(part.value)
        for module in sources()
        if "runtime" in module.path
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and re.search(r"(^Fact|\.note)$", ast.unparse(node.func)) and node.args
        for part in ast.walk(node.args[0])
        if isinstance(part, ast.Constant)
    }


def unsaid(names: Sequence[str], text: str) -> list[str]:
    """Return the *names* that *text* does not say in code style."""
    return [name for name in names if f"`{name}`" not in text]


def all_blocks(language: str) -> list[Block]:
    """Return every block of one language on all pages."""
    return [block for each in pages() for block in each.blocks if block.language == language]


def with_python() -> list[Page]:
    """Return the pages that hold Python snippets and are on their own.

    Decision records show history and are not run; the steps of the tutorial run together, in ``test_tutorial.py``.
    """
    return [
        each
        for each in pages()
        if not each.name.startswith(("docs/adr/", "docs/tutorial/"))
        and any(block.language == "python" for block in each.blocks)
    ]


# --- snippets and commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", with_python(), ids=lambda each: each.name)
def test_every_snippet_runs(each: Page, tmp_path: Path) -> None:
    """Every Python block of a page runs, in order, in a fresh project and a process of its own; its tests pass."""
    python = [block for block in each.blocks if block.language == "python"]
    for block in python:
        compile(block.text, f"{each.name}:{block.line}", "exec")  # also what is shown of others, and not run
    ran = run_blocks(each.name, [block for block in python if not block.mark.startswith("not run")], tmp_path)
    assert (0, "") == (ran.returncode, ran.stderr)
    if any(Path(block.file_name).name.startswith("test_") for block in each.blocks):
        tested = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "."]
        tests = subprocess.run(tested, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
        assert 0 == tests.returncode, tests.stdout


def test_every_command_exists() -> None:
    """Every ``tidewire`` and ``make`` command that a page shows exists, with the options shown."""
    assert [] == [wrong for block in all_blocks("console") for wrong in missing_commands(block)]


@pytest.mark.parametrize(
    "block",
    [block for block in all_blocks("console") if block.mark == "run"],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_marked_commands_print_what_is_shown(block: Block, tmp_path: Path) -> None:
    """A console block marked ``<!-- run -->`` runs offline, exits 0 and prints the lines it shows."""
    said = ""
    for command in block.commands:
        words = shlex.split(command)
        asked = [sys.executable, "-m", "tidewire.cli", *words[1:]] if words[0] == "tidewire" else words
        cwd = tmp_path if words[0] == "tidewire" else ROOT
        ran = subprocess.run(asked, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)
        assert 0 == ran.returncode, ran.stderr
        said += ran.stdout
    assert [] == [line for line in block.output if line not in said]


# --- links ----------------------------------------------------------------------------------------------------


def broken_links(each: Page) -> list[str]:
    """Return the links of a page that lead nowhere."""
    wrong: list[str] = []
    for target in each.links:
        path, _, anchor = target.partition("#")
        goal = (ROOT / each.name).parent / path
        if path and not goal.exists():
            wrong.append(f"{each.name}: {target}")
        elif anchor and goal.suffix in {"", ".md"}:
            there = Page(path, goal.read_text("utf-8")) if path else each
            if anchor not in there.anchors:
                wrong.append(f"{each.name}: {target} has no such heading")
    return wrong


def test_every_link_leads_somewhere() -> None:
    """Links between pages name files and headings that exist."""
    assert [] == [wrong for each in pages() for wrong in broken_links(each)]


def test_every_page_can_be_reached() -> None:
    """From the README every page of the docs can be reached by links."""
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        here = waiting.pop()
        if here in reached or here.suffix != ".md":
            continue
        reached.add(here)
        links = Page(here.relative_to(ROOT).as_posix(), here.read_text("utf-8")).links
        waiting += [(here.parent / link.partition("#")[0]).resolve() for link in links if link.partition("#")[0]]
    everything = {ROOT / each.name for each in pages() if each.name.startswith("docs/")}
    assert [] == sorted(path.name for path in everything - reached)


def test_every_page_is_in_the_navigation() -> None:
    """Each page has one place in the site's navigation; decision records are reached from their index."""
    written = {each.name.removeprefix("docs/") for each in pages() if each.name.startswith("docs/")}
    listed = navigation()
    assert len(set(listed)) == len(listed)
    assert set(listed) == {name for name in written if not re.match(r"adr/(?!README)", name)}


# --- completeness ---------------------------------------------------------------------------------------------


def test_errors_are_documented() -> None:
    """Every error that tidewire raises has its line in ``docs/errors.md``."""
    assert [] == unsaid(tidewire.errors.__all__, page("docs/errors.md").text)


def test_settings_are_documented() -> None:
    """Every setting has its line in ``docs/settings.md``, with its name in the environment and its default."""
    text = page("docs/settings.md").text
    fields = msgspec.structs.fields(Settings)
    assert [] == unsaid([field.name for field in fields] + [f"TIDEWIRE_{field.name.upper()}" for field in fields], text)
    defaults = {
        field.name: field.default
        for field in fields
        if isinstance(field.default, int | float) and not isinstance(field.default, bool)
    }
    rows = [[cell.strip(" `") for cell in line.split("|")[1:4]] for line in text.splitlines() if "| `TIDEWIRE_" in line]
    assert defaults == {name: float(default) for name, _, default in rows if name in defaults}


def test_kinds_of_facts_are_documented() -> None:
    """Every kind of fact that there can be is recorded somewhere, and has its line in ``docs/logs-and-facts.md``."""
    kinds = set(get_args(FactKind))
    facts = page("docs/logs-and-facts.md").text.partition("## Facts")[2]
    assert kinds == set(re.findall(r"^\| `([a-z_]+)` \|", facts, flags=re.MULTILINE))
    assert set() == kinds - noted_texts()


def test_dead_letter_reasons_are_documented() -> None:
    """Every reason for a dead letter has its line in ``docs/retries-and-dead-letters.md``."""
    assert [] == unsaid([reason.value for reason in Reason], page("docs/retries-and-dead-letters.md").text)


def test_log_events_are_documented() -> None:
    """Every log event of the sources has its line in ``docs/logs-and-facts.md``, and none there is made up."""
    text = page("docs/logs-and-facts.md").text
    assert [] == unsaid(sorted(log_names()), text)
    assert set() == set(re.findall(r"`(tidewire\.[a-z_]+\.[a-z_]+)`", text)) - log_names()


def test_commands_are_documented() -> None:
    """Every command and each of its options has its place in ``docs/cli.md`` or a page below ``docs/cli/``."""
    text = "\n".join(one.text for one in pages() if one.name == "docs/cli.md" or one.name.startswith("docs/cli/"))
    assert [] == [f"tidewire {name}" for name in COMMANDS if f"tidewire {name}" not in text]
    assert [] == [f"{name} {option}" for name in COMMANDS for option in help_options(name) if option not in text]


def test_what_import_tidewire_gives_is_documented() -> None:
    """Every public name of ``tidewire`` is said somewhere in the docs."""
    text = "\n".join(each.text for each in pages())
    assert [] == [name for name in tidewire.__all__ if not re.search(rf"\b{name}\b", text)]


def test_guarantees_name_tests_that_exist() -> None:
    """Each test that ``docs/guarantees.md`` gives as proof exists, and each promise has at least one."""
    text = page("docs/guarantees.md").text
    tests = {module.path: set(re.findall(r"def (test_\w+)", module.text)) for module in python_files("tests")}
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)
    assert [] == [f"{path}::{name}" for path, name in named if name not in tests.get(path, set())]
    promises = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert [] == [part.split("\n")[0] for part in promises if re.match(r"\d", part) and "`tests/" not in part]


# --- the checkers bite ----------------------------------------------------------------------------------------


def block(text: str, *, language: str = "python", mark: str = "") -> Block:
    """Return a made-up block of a page."""
    return Block("planted.md", 3, language, text, mark)


def test_a_broken_snippet_is_found(tmp_path: Path) -> None:
    """The snippet runner bites, and names the page's line."""
    ran = run_blocks("planted.md", [block("x = 1"), block("x = 1\n1 / 0")], tmp_path)
    assert 1 == ran.returncode
    assert "planted.md" in ran.stderr
    assert "line 4" in ran.stderr


def test_a_snippet_that_should_raise_must(tmp_path: Path) -> None:
    """A block marked ``raises`` fails if it raises nothing or something else."""
    good = run_blocks("planted.md", [block("int('x')", mark="raises: ValueError")], tmp_path)
    none = run_blocks("planted.md", [block("x = 1", mark="raises: ValueError")], tmp_path)
    other = run_blocks("planted.md", [block("1 / 0", mark="raises: ValueError")], tmp_path)
    assert [0, 1, 1] == [good.returncode, none.returncode, other.returncode]


def test_named_files_can_be_imported_by_later_blocks(tmp_path: Path) -> None:
    """A block that names its file is part of the page's project."""
    blocks = [block("# shop/events.py\nx = 1"), block("from shop.events import x\nassert x == 1")]
    ran = run_blocks("planted.md", blocks, tmp_path)
    assert (0, "") == (ran.returncode, ran.stderr)


@pytest.mark.parametrize("command", ["make dinner", "tidewire fly", "tidewire run shop:x --speed 3"])
def test_a_made_up_command_is_found(command: str) -> None:
    """The command checker bites on targets, commands and options that do not exist."""
    assert 1 == len(missing_commands(block(f"$ make test\n$ {command}  # comment", language="console")))


def test_a_broken_link_is_found() -> None:
    """The link checker bites on files and on headings."""
    text = "# Title here\n[a](#title-here) [b](no.md) [c](#nothing) [d](LICENSE) [e](https://example.org)"
    assert ["planted.md: no.md", "planted.md: #nothing has no such heading"] == broken_links(Page("planted.md", text))


def test_blocks_are_read_with_their_marks() -> None:
    """The reader finds language, line, mark, commands and output of a block."""
    found = Page("planted.md", "one\n\n<!-- run -->\n```console\n$ tidewire --help  # look\nusage: x\n```\n").blocks
    expected = Block("planted.md", 5, "console", "$ tidewire --help  # look\nusage: x", "run")
    assert [expected] == found
    assert (["tidewire --help"], ["usage: x"]) == (found[0].commands, found[0].output)


def test_an_unsaid_name_is_found() -> None:
    """The completeness checker wants a name in code style."""
    assert ["Reject"] == unsaid(["Reject", "RetryAfter"], "Reject is not enough, `RetryAfter` is")
