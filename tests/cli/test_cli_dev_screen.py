"""What ``tidewire dev`` shows on a terminal and in a pipe, and what it refuses."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dev_runs import COMMAND, made, publish

# --- the screen -----------------------------------------------------------------------------------------------


def screen(folder: Path, *, environ: Mapping[str, str]) -> str:
    """Run dev on a terminal until billing has started, end it, and return what the terminal showed."""
    mine, theirs = pty.openpty()
    dev = subprocess.Popen([*COMMAND, "dev"], cwd=folder, stdout=theirs, env={**os.environ, "TERM": "xterm", **environ})
    os.close(theirs)
    shown = b""
    try:
        while b"service.started" not in shown:
            shown += os.read(mine, 65_536)
        dev.send_signal(signal.SIGINT)
        assert 0 == dev.wait(60)
    finally:
        dev.kill()
        os.close(mine)
    return shown.decode()


def test_colour_is_for_terminals_that_want_it(tmp_path: Path) -> None:
    """On a terminal the service column is painted; with ``NO_COLOR`` it is not, and the words are the same."""
    shop = made(tmp_path, "minimal")
    painted, plain = screen(shop, environ={}), screen(shop, environ={"NO_COLOR": "1"})
    assert "\x1b[36mbilling\x1b[0m  service.started" in painted
    assert "\x1b[" not in plain
    assert "billing  service.started" in plain


def test_the_log_reads_well(tmp_path: Path) -> None:
    """In a pipe: what runs, where its data are, what to try next; then lines of time, service, and what happened."""
    shop = made(tmp_path, "minimal")
    dev = subprocess.Popen([*COMMAND, "dev"], cwd=shop, stdout=subprocess.PIPE, text=True)
    assert dev.stdout is not None
    said: list[str] = []
    try:
        for line in dev.stdout:
            said.append(line.rstrip())
            if "service.started" in line:
                publish(shop, "1", "0")
            if "consumer.dead_letter" in line:
                dev.send_signal(signal.SIGTERM)
        assert 0 == dev.wait(60)
    finally:
        dev.kill()
        dev.stdout.close()
    text = "\n".join(said)
    assert "service  billing  (shop.billing:billing)" in said
    assert "         hears shop.order; data in sqlite:///.tidewire/billing.db" in said
    assert """  tidewire publish shop.events:OrderPlaced --data '{"order_id":"1","total":"9.90"}'""" in said
    assert "\x1b[" not in text
    (refused,) = [line for line in said if "an order must cost something" in line]
    assert ["billing", "error", "Reject"] == refused.split()[1:4]
    assert 1 >= text.count("sqlite.old_version")


# --- bad use --------------------------------------------------------------------------------------------------


def refused(folder: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
    """Run dev where it cannot run: exit 2, an error and a hint on stderr, nothing on stdout; return what it said."""
    ran = subprocess.run(
        [*COMMAND, "dev", *arguments],
        cwd=folder,
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (2, "") == (ran.returncode, ran.stdout)
    assert ["error:", "hint:"] == [line.split()[0] for line in ran.stderr.splitlines()]
    return ran.stderr


def test_a_folder_without_services_is_refused(tmp_path: Path) -> None:
    """Where there is nothing to run, the hint names ``tidewire new``."""
    assert "tidewire new" in refused(tmp_path)


def test_without_reload_a_broken_module_is_refused(tmp_path: Path) -> None:
    """Nobody would wait for the change, so the error ends dev."""
    shop = made(tmp_path, "minimal")
    (shop / "shop" / "billing.py").write_text("from tidewire import Service\nbilling = Service(\n")
    assert "SyntaxError" in refused(shop, "--no-reload")


def test_a_broker_in_memory_is_refused(tmp_path: Path) -> None:
    """The services would never meet."""
    assert "memory://" in refused(tmp_path, environ={"TIDEWIRE_BROKER": "memory://"})


def test_one_store_for_several_services_is_refused(tmp_path: Path) -> None:
    """Each service has its own database: the hint tells of ``{service}``."""
    assert "{service}" in refused(made(tmp_path), environ={"TIDEWIRE_STORE": "sqlite:///one.db"})


def test_two_services_of_one_name_are_refused(tmp_path: Path) -> None:
    """They would be one group, and each would get a part of the events."""
    shop = made(tmp_path, "minimal")
    (shop / "shop" / "again.py").write_text((shop / "shop" / "billing.py").read_text("utf-8"))
    assert "both named 'billing'" in refused(shop, "--no-reload")


def test_a_misspelt_target_is_named(tmp_path: Path) -> None:
    """A target that is not there ends dev when nothing can change, with what is near."""
    assert "did you mean 'billing'?" in refused(made(tmp_path, "minimal"), "shop.billing:biling", "--no-reload")
