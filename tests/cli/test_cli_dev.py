"""``tidewire dev`` with real projects, real processes, real changes of files, and real signals."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tidewire.cli.new import TEMPLATES

COMMAND = [sys.executable, "-m", "tidewire.cli"]


class Dev:
    """One run of ``tidewire dev --json``, with what it has told so far."""

    def __init__(self, folder: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.told: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [*COMMAND, "dev", "--json", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(json.loads(line))

    def events(self, event: str, service: str = "") -> list[dict[str, Any]]:
        """Return what was told of an event, by anybody or by one service."""
        return [one for one in tuple(self.told) if one["event"] == event and service in ("", one["service"])]

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait, for a minute at most, until *condition* holds; dev has to live meanwhile."""
        deadline = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None, f"dev ended: {self.told[-5:]}"
            assert time.monotonic() < deadline, f"waited in vain: {what}; {self.told[-8:]}"
            time.sleep(0.02)

    def up(self, *services: str, times: int = 1) -> None:
        """Wait until each of *services* has started that many times."""
        for service in services:
            started = lambda: len(self.events("tidewire.service.started", service)) >= times  # noqa: B023, E731
            self.until(started, f"{service} to start {times} times")

    def processes(self, service: str) -> list[int]:
        """Return the processes that have run *service*, in order."""
        return [one["process"] for one in self.events("tidewire.service.started", service)]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join()
        return code

    def close(self) -> None:
        """Leave nobody behind."""
        if self.process.poll() is None:
            self.process.kill()
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        self.process.wait()


Start = Callable[..., Dev]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts dev; whoever is left at the end is killed."""
    begun: list[Dev] = []

    def run(folder: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> Dev:
        begun.append(Dev(folder, *arguments, environ=environ))
        return begun[-1]

    yield run
    for one in begun:
        one.close()


def made(folder: Path, template: str = "multi-service") -> Path:
    """Return a project called shop, made by ``tidewire new``."""
    subprocess.run([*COMMAND, "new", "shop", "--template", template], cwd=folder, check=True, capture_output=True)
    return folder / "shop"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that is expected to end by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def publish(folder: Path, order: str, total: str = "9.90") -> None:
    """Publish an order, as a person does beside a running dev."""
    data = json.dumps({"order_id": order, "total": total})
    sent = run(folder, "publish", "shop.events:OrderPlaced", "--data", data)
    assert 0 == sent.returncode, sent.stderr


def rows(store: Path, query: str) -> list[tuple[Any, ...]]:
    """Return what a service has in its own database, nothing where it has no such table yet."""
    if not store.exists():
        return []
    connection = sqlite3.connect(store, timeout=10)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a file, in one step, as editors do."""
    text = path.read_text("utf-8")
    assert old in text
    beside = path.with_suffix(".new")
    beside.write_text(text.replace(old, new), "utf-8")
    beside.replace(path)


def alive(process: int) -> bool:
    """Say whether a process lives; a zombie does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


# --- good use -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_a_new_project_works_at_once(template: str, tmp_path: Path, start: Start) -> None:
    """``new``, ``dev``, and the command that dev proposes: the event has its effect, and dev drains with exit 0."""
    shop = made(tmp_path, template)
    dev = start(shop)
    dev.up("billing")
    (started,) = dev.events("started")
    assert "sqlite:///.tidewire/broker.db" == started["broker"]
    billing = {one["name"]: one for one in started["services"]}["billing"]
    assert ("shop.billing:billing", ["shop.order"]) == (billing["target"], billing["topics"])
    sent = run(shop, *shlex.split(started["next"][0])[1:])
    assert 0 == sent.returncode, sent.stderr
    paid = lambda: rows(shop / ".tidewire" / "billing.db", "select * from payments")  # noqa: E731
    dev.until(paid, "the payment")
    dev.until(lambda: dev.events("processed", "billing"), "the line that tells it")
    assert sent.stdout.strip() == dev.events("processed", "billing")[0]["event_id"]
    assert (0, [("1", "9.90")]) == (dev.end(), paid())
    assert {"tidewire.service.drained", "stopped"} <= {one["event"] for one in dev.told}


def test_each_service_is_a_process_with_its_own_store(tmp_path: Path, start: Start) -> None:
    """Three services, three processes, three stores, one broker; an order goes through all of them."""
    shop = made(tmp_path)
    dev = start(shop)
    dev.up("billing", "shipping", "history")
    pids = {dev.processes(name)[0] for name in ("billing", "shipping", "history")}
    assert 3 == len(pids - {dev.process.pid})
    publish(shop, "1")
    dev.until(lambda: len(rows(shop / ".tidewire" / "history.db", "select * from history")) == 3, "the whole way")
    assert 0 == dev.end(signal.SIGINT)
    assert not any(alive(pid) for pid in pids)
    files = {path.name for path in (shop / ".tidewire").glob("*.db")}
    assert {"broker.db", "billing.db", "shipping.db", "history.db"} == files


def test_a_change_starts_again_only_what_loaded_the_file(tmp_path: Path, start: Start) -> None:
    """Editing billing restarts billing; editing the events, which all import, restarts all. The new code runs."""
    shop = made(tmp_path)
    dev = start(shop)
    dev.up("billing", "shipping", "history")
    edit(shop / "shop" / "billing.py", "str(order.total))", "'changed')")
    dev.up("billing", times=2)
    assert [["billing.py"]] == [one["files"] for one in dev.events("restarting")]
    publish(shop, "1")
    payments = lambda: rows(shop / ".tidewire" / "billing.db", "select total from payments")  # noqa: E731
    dev.until(payments, "a payment by the new code")
    assert [("changed",)] == payments()
    assert [1, 1] == [len(dev.processes(name)) for name in ("shipping", "history")]
    edit(shop / "shop" / "events.py", "left the house", "gone")
    dev.up("shipping", "history", times=2)
    dev.up("billing", times=3)
    assert 0 == dev.end()


def test_a_file_that_nobody_loaded_starts_nothing(tmp_path: Path, start: Start) -> None:
    """A change of a test, and of a virtual environment, concerns no service."""
    shop = made(tmp_path, "minimal")
    (shop / "venv").mkdir()
    (shop / "venv" / "pyvenv.cfg").touch()
    dev = start(shop)
    dev.up("billing")
    (shop / "venv" / "other.py").write_text("x = 1\n")
    edit(shop / "tests" / "test_billing.py", "at once", "soon")
    edit(shop / "shop" / "billing.py", "a payment for", "payment for")
    dev.up("billing", times=2)
    assert [["billing.py"]] == [one["files"] for one in dev.events("restarting")]


def test_an_import_error_is_shown_and_waited_out(tmp_path: Path, start: Start) -> None:
    """Code that cannot be imported is told once, with its line; the process from before goes on until it is mended."""
    shop = made(tmp_path, "minimal")
    dev = start(shop)
    dev.up("billing")
    edit(shop / "shop" / "billing.py", "billing = Service(", "billing = Service((")
    dev.until(lambda: dev.events("problem"), "the problem")
    (problem,) = dev.events("problem")
    assert "SyntaxError" in problem["message"]
    assert "billing.py" in problem["hint"]
    publish(shop, "1")
    dev.until(lambda: dev.events("processed"), "the old code to go on")
    edit(shop / "shop" / "billing.py", "billing = Service((", "billing = Service(")
    dev.up("billing", times=2)
    assert (1, 0) == (len(dev.events("mended")), dev.end())


@pytest.mark.parametrize("broken", ["import nowhere\n", "raise RuntimeError('no')\n", "exit(3)\n", "x = (\n"])
def test_a_project_that_is_broken_at_the_start_is_waited_for(broken: str, tmp_path: Path, start: Start) -> None:
    """Whatever a module does when it is imported, dev tells it, stays, and starts the service once it can."""
    shop = made(tmp_path, "minimal")
    good = (shop / "shop" / "billing.py").read_text("utf-8")
    (shop / "shop" / "billing.py").write_text(broken + good)
    dev = start(shop)
    dev.until(lambda: dev.events("problem"), "the problem")
    assert "shop.billing" in dev.events("problem")[0]["module"]
    (shop / "shop" / "billing.py").write_text(good)
    dev.up("billing")
    assert 0 == dev.end()


def test_services_come_and_go_with_the_code(tmp_path: Path, start: Start) -> None:
    """A new file with a service starts it; a service that is taken out of the code drains."""
    shop = made(tmp_path, "minimal")
    dev = start(shop)
    dev.up("billing")
    text = (shop / "shop" / "billing.py").read_text("utf-8").replace('Service("billing")', 'Service("audit")')
    (shop / "shop" / "audit.py").write_text(text)
    dev.up("audit")
    (audit,) = dev.processes("audit")
    (shop / "shop" / "audit.py").unlink()
    dev.until(lambda: not alive(audit), "the process of audit to end")
    assert ["tidewire.service.drained"] == [one["event"] for one in dev.events("tidewire.service.drained", "audit")]
    assert 1 == len(dev.processes("billing"))
    assert 0 == dev.end()


def test_a_crashed_service_comes_back(tmp_path: Path, start: Start) -> None:
    """``kill -9`` of one process: it is told, another takes its place after a moment, and the work goes on."""
    shop = made(tmp_path, "minimal")
    dev = start(shop)
    dev.up("billing")
    os.kill(dev.processes("billing")[0], signal.SIGKILL)
    dev.up("billing", times=2)
    (ended,) = dev.events("ended", "billing")
    assert (-9, 0.5) == (ended["code"], ended["again_in_s"])
    publish(shop, "1")
    dev.until(lambda: rows(shop / ".tidewire" / "billing.db", "select * from payments"), "the payment")
    assert 0 == dev.end()


def test_where_a_handler_raised_is_shown(tmp_path: Path, start: Start) -> None:
    """An error of a handler comes with its traceback; what a handler prints comes as a line of its service."""
    shop = made(tmp_path, "minimal")
    edit(
        shop / "shop" / "billing.py",
        "    await context.tx.execute(PAYMENTS)\n",
        "    print('charging', order.order_id)\n    raise OSError('the bank is closed')\n",
    )
    dev = start(shop)
    dev.up("billing")
    publish(shop, "1")
    dev.until(lambda: dev.events("tidewire.dev.raised"), "the error")
    raised = dev.events("tidewire.dev.raised", "billing")[0]
    assert ("OSError", "the bank is closed", 1) == (raised["error_type"], raised["error"], raised["attempt"])
    assert "raise OSError('the bank is closed')" in raised["traceback"]
    assert "charging 1" in [one["text"] for one in dev.events("output", "billing")]
    dev.until(lambda: dev.events("tidewire.consumer.retry"), "the retry")


# --- ending ---------------------------------------------------------------------------------------------------


def test_nobody_outlives_a_dev_that_was_killed(tmp_path: Path, start: Start) -> None:
    """``kill -9`` of dev: every service notices, drains and ends."""
    shop = made(tmp_path)
    dev = start(shop)
    dev.up("billing", "shipping", "history")
    pids = [dev.processes(name)[0] for name in ("billing", "shipping", "history")]
    dev.process.kill()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_dev_ends_when_nobody_reads_its_log(tmp_path: Path) -> None:
    """``tidewire dev | head -1`` ends, and leaves no service behind."""
    shop = made(tmp_path, "minimal")
    edit(
        shop / "shop" / "billing.py",
        "PAYMENTS =",
        "open(f'pid-{__import__(\"os\").getpid()}', 'w').close()\nPAYMENTS =",
    )
    dev = subprocess.Popen(
        [*COMMAND, "dev", "--json"], cwd=shop, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert dev.stdout is not None
    try:
        assert "started" == json.loads(dev.stdout.readline())["event"]
        dev.stdout.close()
        assert 0 == dev.wait(60)
        assert dev.stderr is not None
        assert "" == dev.stderr.read()
    finally:
        dev.kill()
        dev.communicate()
    assert not any(alive(int(path.name[4:])) for path in shop.glob("pid-*"))


def test_the_second_signal_stops_at_once(tmp_path: Path, start: Start) -> None:
    """A handler that takes its time is waited for after the first signal, and cut off by the second."""
    shop = made(tmp_path, "minimal")
    edit(
        shop / "shop" / "billing.py",
        "    await context.tx.execute(PAYMENTS)\n",
        "    print('slow', flush=True)\n    await __import__('asyncio').sleep(600)\n",
    )
    dev = start(shop, environ={"TIDEWIRE_GRACE": "300"})
    dev.up("billing")
    publish(shop, "1")
    dev.until(lambda: dev.events("output"), "the handler to begin")
    dev.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        dev.process.wait(0.5)
    assert 0 == dev.end(signal.SIGINT)
    assert 1 == len(dev.events("tidewire.service.stopped_at_once", "billing"))


# --- settings and targets -------------------------------------------------------------------------------------


def test_targets_and_settings_say_what_runs(tmp_path: Path, start: Start) -> None:
    """Only the named services run: those on the command line, or else those of ``[tool.tidewire]``."""
    shop = made(tmp_path)
    only = start(shop, "shop.billing:billing", "--no-reload")
    only.up("billing")
    assert ["billing"] == [one["name"] for one in only.events("started")[0]["services"]]
    assert 0 == only.end()
    with (shop / "pyproject.toml").open("a") as project:
        project.write('\n[tool.tidewire]\nservices = ["shop.history", "shop.shipping:shipping"]\n')
    listed = start(shop)
    listed.up("history", "shipping")
    assert ["history", "shipping"] == sorted(one["name"] for one in listed.events("started")[0]["services"])
    assert 0 == listed.end()


def test_broker_and_stores_can_be_elsewhere(tmp_path: Path, start: Start) -> None:
    """``TIDEWIRE_BROKER`` and ``TIDEWIRE_STORE`` win; ``{service}`` in a store's URL is the service."""
    shop = made(tmp_path)
    data = tmp_path / "data"
    environ = {"TIDEWIRE_BROKER": f"sqlite:///{data}/b.db", "TIDEWIRE_STORE": f"sqlite:///{data}/{{service}}-x.db"}
    dev = start(shop, environ=environ)
    dev.up("billing", "shipping", "history")
    assert 0 == dev.end()
    assert {"b.db", "billing-x.db", "shipping-x.db", "history-x.db"} == {path.name for path in data.glob("*.db")}
    assert not (shop / ".tidewire").exists()


def test_modules_below_src_are_found(tmp_path: Path, start: Start) -> None:
    """A project whose package lies in ``src`` runs without being installed."""
    shop = made(tmp_path, "minimal")
    (shop / "src").mkdir()
    (shop / "shop").rename(shop / "src" / "shop")
    dev = start(shop)
    dev.up("billing")
    assert 0 == dev.end()


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
