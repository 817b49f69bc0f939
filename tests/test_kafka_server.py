"""The Apache Kafka that tests use: private, stopped by its pid; one that stays, and a cluster of three."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_server import NoServer, fetched, private_cluster

from source_tree import ROOT


def test_services_come_up_and_go_down(tmp_path: Path) -> None:
    """`up` adds where the broker is to what others wrote and is harmless when repeated; `down` leaves nothing of it."""
    script = tmp_path / "scripts" / "kafka_server.py"
    script.parent.mkdir()
    script.write_text((ROOT / "scripts" / "kafka_server.py").read_text())
    environment = tmp_path / "build" / "services.env"
    environment.parent.mkdir()
    environment.write_text("export OTHER=1\n")
    try:
        libs = {"TIDEWIRE_TEST_KAFKA_LIBS": str(fetched())}
    except NoServer as error:
        pytest.skip(f"not proven: needs an Apache Kafka server: {error}")

    def run(word: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), word]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **libs})

    done = run("up")
    if "not installed" in done.stderr:
        pytest.skip(f"not proven: needs an Apache Kafka server: {done.stderr}")
    try:
        assert (0, "") == (done.returncode, done.stderr)
        other, export = environment.read_text().splitlines()
        url = export.removeprefix("export TIDEWIRE_TEST_KAFKA=kafka://")
        assert "export OTHER=1" == other
        assert 1 == len(AdminClient({"bootstrap.servers": url}).list_topics(timeout=10).brokers)
        assert "runs already" in run("up").stdout
        folder = (tmp_path / "build" / "kafka" / "running").read_text().splitlines()[0]
    finally:
        done = run("down")
    assert "has ended" in done.stdout
    assert not Path(folder).exists()
    assert "export OTHER=1\n" == environment.read_text()
    assert "no Apache Kafka runs" in run("down").stdout


def test_a_cluster_takes_writes_while_one_broker_is_dead() -> None:
    """Three brokers hold everything three times; with one killed, two are enough for a confirmed write."""
    try:
        with private_cluster() as brokers:
            servers = ",".join(one.address for one in brokers)
            admin = AdminClient({"bootstrap.servers": servers})
            assert 3 == len(admin.list_topics(timeout=20).brokers)
            brokers[0].kill()
            until(lambda: 2 == len(admin.list_topics(timeout=5).brokers), "the death is known")
            until(lambda: _is_created(admin, "kept"), "the topic is there")
            producer = Producer({"bootstrap.servers": servers, "acks": "all", "message.timeout.ms": 60_000})
            failed: list[object] = []
            producer.produce("kept", b"1", on_delivery=lambda error, _: failed.append(error))
            assert (0, [None]) == (producer.flush(65), failed)
            producer.close()
    except NoServer as error:
        pytest.skip(f"not proven: needs an Apache Kafka server: {error}")


def until(reached: Callable[[], bool], what: str) -> None:
    """Ask again and again, as a client does: a request may be lost with the broker or the controller that had it."""
    deadline = time.monotonic() + 90
    while True:
        with contextlib.suppress(KafkaException, TimeoutError):
            if reached():
                return
        assert time.monotonic() < deadline, f"not within 90 s: {what}"
        time.sleep(0.2)


def _is_created(admin: AdminClient, topic: str) -> bool:
    """Ask for a topic with a copy on two brokers; whether it is there."""
    [future] = admin.create_topics([NewTopic(topic, 1, 2)], operation_timeout=5, request_timeout=10).values()
    try:
        future.result(15.0)
    except KafkaException as error:
        return bool(KafkaError.TOPIC_ALREADY_EXISTS == error.args[0].code())
    return True
