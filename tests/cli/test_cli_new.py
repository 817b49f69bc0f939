"""``tidewire new``: projects that run, pass their own tests, and never stand half-made or in somebody's way."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tidewire.cli import new
from tidewire.cli.main import main
from tidewire.cli.new import TEMPLATES, rendered

SHELVES = Path(new.__file__).parent / "templates"


def tidewire(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "tidewire.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


def tool(*arguments: str, cwd: Path) -> tuple[int, str]:
    """Run a module of this Python in *cwd*; return its code, and what it said if that was not 0."""
    ran = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=180, check=False, cwd=cwd
    )
    return ran.returncode, ran.stdout + ran.stderr if ran.returncode else ""


def paid(store: Path) -> list[tuple[str, str]]:
    """Return the payments in a service's own database."""
    if not store.exists():
        return []
    connection = sqlite3.connect(store, timeout=10)
    try:
        return connection.execute("select order_id, total from payments").fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project made from each template in turn."""
    folder = tmp_path_factory.mktemp("new")
    made = tidewire("new", "my-shop", "--template", request.param, cwd=folder)
    assert (0, "") == (made.returncode, made.stderr)
    return folder / "my-shop"


def test_every_template_is_offered() -> None:
    """The templates that are shipped are those that ``--template`` knows."""
    assert sorted(TEMPLATES) == sorted(path.name for path in SHELVES.iterdir() if path.is_dir())


def test_a_project_passes_its_own_tests(project: Path) -> None:
    """Its tests pass at once, warnings being errors, with nothing installed but tidewire and what it asks for."""
    quiet = ["-W", "error", "-p", "no:asyncio", "-p", "no:cacheprovider"]
    assert (0, "") == tool("pytest", "-q", *quiet, cwd=project)


def test_the_readme_starts_a_service_as_production_does(project: Path, tmp_path: Path) -> None:
    """The command that it names works as it stands, in a project where nothing has run yet."""
    fresh = shutil.copytree(project, tmp_path / "fresh", ignore=shutil.ignore_patterns(".tidewire"))
    (arguments,) = re.findall(r"`tidewire (run [^`]+)`", (fresh / "README.md").read_text())
    command = [sys.executable, "-m", "tidewire.cli", *shlex.split(arguments)]
    with subprocess.Popen(command, cwd=fresh, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next((line for line in process.stderr if "old_version" not in line), "")
        process.terminate()
        process.communicate(timeout=60)
    assert "tidewire.service.started" in said
    assert 0 == process.returncode


def test_a_project_is_in_good_style(project: Path) -> None:
    """Format, lint and strict types hold in every file that a template makes."""
    rules = "E,F,W,I,B,UP,S,RUF,SIM,C4,PIE,PT,RET,TID"
    assert (0, "") == tool("ruff", "format", "--check", "--no-cache", ".", cwd=project)
    lint = ["ruff", "check", "--no-cache", "--select", rules, "--ignore", "S101"]
    assert (0, "") == tool(*lint, ".", cwd=project)
    cache = f"--cache-dir={project.parent / 'mypy'}"
    assert (0, "") == tool("mypy", "--strict", cache, "my_shop", cwd=project)
    assert (0, "") == tool("mypy", cache, "tests", cwd=project)


def test_no_placeholder_is_left(project: Path) -> None:
    """Every placeholder of a template is filled in, in texts and in names, and the project's table can be read."""
    texts = {path: path.read_text("utf-8") for path in project.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert [] == [str(path) for path, text in texts.items() if "{{" in str(path) or "{{package" in text]
    assert [] == [str(path) for path, text in texts.items() if "{{name" in text or "{{version" in text]
    assert "my-shop" == tomllib.loads(texts[project / "pyproject.toml"])["project"]["name"]
    assert ".tidewire/" in texts[project / ".gitignore"].splitlines()


def test_a_project_runs(project: Path) -> None:
    """``tidewire run`` serves its billing, and an event published to it has its effect, in its own database."""
    names = ("--broker", "sqlite:///broker.db", "--store", "sqlite:///billing.db", "--provision")
    command = [sys.executable, "-m", "tidewire.cli", "run", "my_shop.billing", *names]
    service = subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True)
    try:
        data = '{"order_id": "1", "total": "9.90"}'
        event = ("publish", "my_shop.events:OrderPlaced", "--data", data, "--broker", "sqlite:///broker.db")
        deadline = time.monotonic() + 60
        while tidewire(*event, "--id", "one", cwd=project).returncode:  # refused until the service has its topic
            assert time.monotonic() < deadline
        while not paid(project / "billing.db"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        service.send_signal(signal.SIGTERM)
        _, said = service.communicate(timeout=60)
    finally:
        service.kill()
    assert (0, [("1", "9.90")]) == (service.returncode, paid(project / "billing.db")), said


def test_json_tells_what_was_made(tmp_path: Path) -> None:
    """``--json`` prints one object: name, package, template, folder, files, and the next commands."""
    (tmp_path / "services").mkdir()
    made = tidewire("new", "services/web_shop", "--template", "fastapi", "--json", cwd=tmp_path)
    told = json.loads(made.stdout)
    assert {"name": "web-shop", "package": "web_shop", "template": "fastapi", "folder": "services/web_shop"} == {
        key: told[key] for key in ("name", "package", "template", "folder")
    }
    there = {path.relative_to(tmp_path / told["folder"]).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert there == set(told["files"]) == set(rendered("fastapi", "web_shop"))
    assert ["cd services/web_shop", "pytest", "tidewire dev"] == told["next"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("MyShop", "`tidewire new my-shop`"),
        ("9lives", "`tidewire new lives`"),
        ("shop-", "`tidewire new shop`"),
        ("sh op", "`tidewire new sh-op`"),
        ("naïve", "`tidewire new na-ve`"),
        ("x" * 41, "at most 40"),
        ("class", "`tidewire new my-class`"),
        ("json", "`tidewire new my-json`"),
        ("tidewire", "`tidewire new my-tidewire`"),
        ("tests", "`tidewire new my-tests`"),
        ("..", "a-z first"),
        (".", "`tidewire new shop`"),
        ("nowhere/shop", "mkdir -p nowhere"),
    ],
)
def test_a_bad_name_is_refused(name: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot name a project ends with exit 2 and a hint that names what would do; nothing is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert 2 == main(["new", name])
    said = capsys.readouterr()
    assert ("", True, []) == (said.out, hint in said.err, list(tmp_path.iterdir()))
    assert ["error:", "hint:"] == [line.split()[0] for line in said.err.splitlines()]


def test_a_folder_that_holds_anything_is_refused(tmp_path: Path) -> None:
    """A non-empty folder, a file and a link are left as they are."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("full", "file", "link"):
        refused = tidewire("new", name, cwd=tmp_path)
        assert 2 == refused.returncode
        assert "nothing is overwritten" in refused.stderr
    assert ["file", "full", "link"] == sorted(path.name for path in tmp_path.iterdir())
    assert ["mine.txt"] == [path.name for path in (tmp_path / "full").iterdir()]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    """An empty folder is no obstacle, and the project is as readable as any new folder."""
    (tmp_path / "shop").mkdir()
    assert 0 == tidewire("new", "shop", cwd=tmp_path).returncode
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "usual").stat().st_mode == (tmp_path / "shop").stat().st_mode
    assert (tmp_path / "shop" / "pyproject.toml").is_file()


def test_a_project_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """Where it cannot be written to its end, nothing is left behind, hidden or not."""
    limited = f"ulimit -f 0; exec {sys.executable} -m tidewire.cli new shop"
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    refused = subprocess.run(
        ["/bin/sh", "-c", f"trap '' XFSZ; {limited}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=environ,
    )
    assert (2, []) == (refused.returncode, list(tmp_path.iterdir())), refused.stderr
    assert "error: shop could not be made" in refused.stderr


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A misspelt template ends with exit 2 and the list of those that are there."""
    refused = tidewire("new", "shop", "--template", "django", cwd=tmp_path)
    assert 2 == refused.returncode
    assert "minimal" in refused.stderr
