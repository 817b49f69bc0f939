"""The tutorial is true: done from the first step to the last in an empty folder, each command prints what is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from doc_pages import Block, Page, pages
from tutorial_session import Shell, Tutorial, not_said, typed

STEPS = [page for page in pages() if page.name.startswith("docs/tutorial/") and not page.name.endswith("/index.md")]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tutorial]:
    """A reader with an empty folder and one shell."""
    reader = Tutorial(STEPS, tmp_path_factory.mktemp("tutorial"))
    yield reader
    reader.close()


def test_the_tutorial_has_ten_steps() -> None:
    """They are numbered, and run in that order."""
    assert [f"{number:02}" for number in range(1, 11)] == [Path(step.name).name[:2] for step in STEPS]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: Path(step.name).stem)
def test_each_step_does_what_it_shows(tutorial: Tutorial, step: Page) -> None:
    """Every file is written and every command run, after the steps before; output and exit code are as shown."""
    assert [] == tutorial.do(step)


# --- the checker bites ----------------------------------------------------------------------------------------


def test_a_shown_line_must_be_said() -> None:
    """Ids, times and ages may differ, other words and the order may not."""
    said = "a 0199e3c2-7e21-7d4e-9c58-5f0a3b1f2d11 3 s\nb  2 rows\n"
    assert [] == not_said(["a 01a21d94-ea6e-7000-807c-a3467b62bc20  12 s", "b 2 …"], said)
    assert ["b 3 rows"] == not_said(["b 3 rows"], said)
    assert ["a …"] == not_said(["b 2 rows", "a …"], said)


def test_commands_are_told_from_what_they_print() -> None:
    """A continued command is one command; a line of dots is no output."""
    text = "$ one \\\n  two\nsaid\n…\n$ three"
    assert [("one   two", ["said"]), ("three", [])] == list(typed(text))


@pytest.mark.parametrize(
    "block",
    [
        Block("planted.md", 1, "console", "$ false"),
        Block("planted.md", 1, "console", "$ true", "exit: 1"),
        Block("planted.md", 1, "console", "$ echo one\ntwo"),
        Block("planted.md", 1, "python", "x = 1"),
        Block("planted.md", 1, "python", "x = 1", "part of: there.py"),
    ],
    ids=["fails", "succeeds", "says something else", "names no file", "is no part"],
)
def test_what_is_not_as_shown_is_found(block: Block, tmp_path: Path) -> None:
    """A wrong exit code, a missing line, a block without a file and a part that is not there are reported."""
    (tmp_path / "there.py").write_text("y = 1\n")
    page = Page("planted.md", f"<!-- {block.mark} -->\n```{block.language}\n{block.text}\n```\n")
    reader = Tutorial([page], tmp_path)
    try:
        assert [] != reader.do(page)
    finally:
        reader.close()


def test_a_shell_ends_the_jobs_it_is_left_with(tmp_path: Path) -> None:
    """What a step forgets to stop does not outlive the tests."""
    shell = Shell(tmp_path)
    said, _ = shell.run("sleep 1000 & echo $!")
    shell.close()
    assert not Path(f"/proc/{said.split()[-1]}/exe").exists()
