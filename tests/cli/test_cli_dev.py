"""``tidewire dev`` with real projects, real processes, real changes of files, and real signals."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from dev_runs import COMMAND, Dev, alive, edit, made, publish, rows, run

from tidewire.cli.new import TEMPLATES
from tidewire.testing.servers.processes import wait_until_heard

Start = Callable[..., Dev]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts dev; whoever is left at the end is killed."""
    begun: list[Dev] = []

    def begin(folder: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> Dev:
        begun.append(Dev(folder, *arguments, environ=environ))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


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
    dev.until(lambda: "charging 1" in [one["text"] for one in dev.events("output", "billing")], "what it prints")
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
    dev.until(lambda: dev.events("stopping"), "dev to hear it")
    with pytest.raises(subprocess.TimeoutExpired):
        dev.process.wait(0.5)
    wait_until_heard(dev.processes("billing")[0], signal.SIGTERM)
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
