"""The RabbitMQ that tests use: private, stopped by its pid, nothing of it stays behind; and one that stays."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from rabbitmq_server import RabbitServer

from source_tree import ROOT
from tidewire.testing.servers.processes import is_alive, wait_until_gone

_GREETING = b"AMQP\x00\x00\x09\x01"


def children(pid: int) -> list[int]:
    """Return the processes that *pid* has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def answers(port: int, seconds: float = 10.0) -> bool:
    """Whether a broker greets there in time."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(_GREETING)
        try:
            return connection.recv(1) == b"\x01"
        except TimeoutError:
            return False


def test_a_killed_broker_takes_its_helpers_along_and_comes_back(rabbitmq_server: RabbitServer) -> None:
    """SIGKILL leaves no process of it; a start on the same ports finds its data."""
    rabbitmq_server.control("add_vhost", "kept")
    helpers = children(rabbitmq_server.pid)
    assert helpers
    rabbitmq_server.kill()
    wait_until_gone(helpers, 10.0)
    assert [False] * len(helpers) == [is_alive(pid) for pid in helpers]
    rabbitmq_server.start()
    assert "kept" in rabbitmq_server.control("list_vhosts").split()
    rabbitmq_server.control("delete_vhost", "kept")


def test_a_paused_broker_is_silent_until_it_goes_on(rabbitmq_server: RabbitServer) -> None:
    """It takes connections, because the kernel does, and says nothing; then it greets again."""
    rabbitmq_server.pause()
    try:
        assert not answers(rabbitmq_server.port, 0.3)
    finally:
        rabbitmq_server.resume()
    assert answers(rabbitmq_server.port)


def test_the_disk_alarm_comes_and_goes(rabbitmq_server: RabbitServer) -> None:
    """It is in force when the call returns, and gone after the other."""
    rabbitmq_server.raise_disk_alarm()
    try:
        assert "disk" in rabbitmq_server.control("eval", "rabbit_alarm:get_alarms().")
    finally:
        rabbitmq_server.clear_disk_alarm()
    assert "[]" == rabbitmq_server.control("eval", "rabbit_alarm:get_alarms().").strip()


def test_its_certificate_is_good_for_its_address(rabbitmq_server: RabbitServer) -> None:
    """A client that trusts `authority` verifies the server's name and speaks to it."""
    trust = ssl.create_default_context(cafile=rabbitmq_server.authority)
    with (
        socket.create_connection(("127.0.0.1", rabbitmq_server.tls_port), timeout=10.0) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(_GREETING)
        assert b"\x01" == connection.recv(1)


def test_services_come_up_and_go_down(tmp_path: Path) -> None:
    """`up` writes where the broker is; `down` leaves no process and no data."""
    script = tmp_path / "scripts" / "rabbitmq_server.py"
    script.parent.mkdir()
    script.write_text((ROOT / "scripts" / "rabbitmq_server.py").read_text())

    def run(word: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(script), word], capture_output=True, text=True, check=False)

    done = run("up")
    if "not installed" in done.stderr:
        pytest.skip(f"not proven: needs a RabbitMQ server: {done.stderr}")
    try:
        assert (0, "") == (done.returncode, done.stderr)
        (export,) = (tmp_path / "build" / "services.env").read_text().splitlines()
        assert export.startswith("export TIDEWIRE_TEST_RABBITMQ=amqp://worker:")
        assert answers(int(export.rpartition(":")[2]))
        folder, pid, _ = (tmp_path / "build" / "rabbitmq.running").read_text().splitlines()
        helpers = children(int(pid))
        assert "runs already" in run("up").stdout
    finally:
        done = run("down")
    assert "has ended" in done.stdout
    assert not Path(folder).exists()
    wait_until_gone(helpers, 10.0)
    assert [False] * len(helpers) == [is_alive(pid) for pid in helpers]
    assert not (tmp_path / "build" / "services.env").exists()
