"""A reader at work: types what the tutorial shows into one shell, step after step, and compares what comes back."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from doc_pages import Block, Page

# What differs from run to run, in the order in which it is looked for; everything else must be as shown.
VARYING = (
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", r"[0-9a-f-]{36}"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*(?:Z|\+00:00)", r"[-0-9T:.+Z ]+"),
    (r"\d\d:\d\d:\d\d\.\d{3}", r"[0-9:.]{12}"),
    (r"(?<![\w.])\d+ (?:s|min|h|d)(?!\w)", r"\d+ (?:s|min|h|d)"),
    (r"(?<=in )\d+\.\d+s", r"\d+\.\d+s"),
    (r"…", r".*"),
    (r"\s+", r"\s+"),
)
# The port that the pages name; each run takes a free one in its place, so that two at a time do not meet.
PORT = "8417"
COMMAND_MAX_S = 120.0
UNTIL_MAX_S = 90.0


class Shell:
    """One bash with job control in *folder*; `tidewire`, `python` and `pytest` are those of this interpreter."""

    def __init__(self, folder: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEWIRE_", "PYTEST_"))}
        clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env={**clean, "COLUMNS": "160", "PYTEST_ADDOPTS": "-p no:cacheprovider"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.run("set -m")

    def run(self, command: str) -> tuple[str, int]:
        """Type *command* and return what it printed and its exit code."""
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{command}\nprintf '\\n<done %d>\\n' $?\n".encode())
        self._bash.stdin.flush()
        said, deadline = b"", time.monotonic() + COMMAND_MAX_S
        while not (end := re.search(rb"\n<done (\d+)>\n\Z", said)):
            said += self._read(deadline, command)
        return said[: end.start()].decode(), int(end[1])

    @property
    def folder(self) -> Path:
        """Where the reader is."""
        return Path(self.run("pwd")[0].strip())

    def close(self) -> None:
        """End every job that is left, and the shell."""
        jobs = [int(number) for number in self.run("jobs -p")[0].split()]
        for job in jobs:
            os.killpg(job, signal.SIGKILL)
        self._bash.kill()
        self._bash.communicate()

    def _read(self, deadline: float, command: str) -> bytes:
        assert self._bash.stdout is not None
        ready, _, _ = select.select([self._bash.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no end within {COMMAND_MAX_S} s: {command}"
        read = os.read(self._bash.stdout.fileno(), 65_536)
        assert read, f"the shell has ended: {command}"
        return read


class Tutorial:
    """The pages in order, each done once; a page is only right after all those before it."""

    def __init__(self, steps: list[Page], folder: Path) -> None:
        port = free_port()
        self._waiting = [Page(step.name, step.text.replace(PORT, port)) for step in steps]
        self._shell = Shell(folder)
        self._failed = ""

    def do(self, step: Page) -> list[str]:
        """Do everything up to *step* and return what is not as shown."""
        while not self._failed and any(page.name == step.name for page in self._waiting):
            wrong = self._page(self._waiting.pop(0))
            self._failed = "\n".join(wrong)
        return [self._failed] if self._failed else []

    def close(self) -> None:
        """End the shell and what it has started."""
        self._shell.close()

    def _page(self, page: Page) -> list[str]:
        for block in page.blocks:
            if block.mark == "not run":
                continue
            wrong = self._console(block) if block.language == "console" else self._file(block)
            if wrong:
                return wrong
        return []

    def _file(self, block: Block) -> list[str]:
        if block.mark.startswith("part of: "):
            whole = (self._shell.folder / block.mark.removeprefix("part of: ")).read_text("utf-8")
            return [] if block.text in whole else [f"{block.page}:{block.line}: not in the file it is part of"]
        if not block.file_name:
            return [f"{block.page}:{block.line}: a block of a tutorial names its file, is part of one, or is not run"]
        path = self._shell.folder / block.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text + "\n", "utf-8")
        return []

    def _console(self, block: Block) -> list[str]:
        code = int(block.mark.removeprefix("exit: ")) if block.mark.startswith("exit: ") else 0
        for command, shown in typed(block.text):
            deadline = time.monotonic() + (UNTIL_MAX_S if block.mark == "until" else 0)
            while True:
                said, ended = self._shell.run(command)
                missing = not_said(shown, said)
                if (not missing and ended == code) or time.monotonic() > deadline:
                    break
            if missing or ended != code:
                return [
                    f"{block.page}:{block.line}: $ {command}\nended {ended}, not shown: {missing}\n--- said:\n{said}"
                ]
        return []


def free_port() -> str:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def typed(text: str) -> Iterator[tuple[str, list[str]]]:
    """Split a console block into commands, each with the lines shown after it."""
    for part in re.split(r"^\$ ", text.replace("\\\n", ""), flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, [line for line in shown.splitlines() if line.strip() not in ("", "…")]


def not_said(shown: list[str], said: str) -> list[str]:
    """Return the first of the lines *shown* that *said* does not have, after those before it."""
    lines = iter(said.splitlines())
    for line in shown:
        wanted = re.compile(pattern(line.strip()))
        if not any(wanted.fullmatch(there.strip()) for there in lines):
            return [line]
    return []


def pattern(line: str) -> str:
    """Return the regular expression of a shown line: ids, times and ages may be others, ``…`` is anything."""
    found = re.compile("|".join(f"({shape})" for shape, _ in VARYING))
    parts, at = [], 0
    for match in found.finditer(line):
        parts += [re.escape(line[at : match.start()]), VARYING[(match.lastindex or 1) - 1][1]]
        at = match.end()
    return "".join([*parts, re.escape(line[at:])])
