"""Plain kafkajs programs beside the service, as real processes on a real Kafka."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from confluent_kafka import murmur2
from interop_programs import HOME, TIDEWIRE, Day, books, by_order, environment_of, letters, program_of, ran, started


@pytest.fixture(scope="module")
def kafkajs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs and kafkajs, installed as the lock file says."""
    npm = program_of("npm")
    folder = tmp_path_factory.mktemp("interop") / "kafkajs"
    shutil.copytree(HOME / "kafkajs", folder, ignore=shutil.ignore_patterns("node_modules"))
    quick = ("--fetch-retries=0", "--fetch-timeout=20000", "--prefer-offline")
    command = [npm, "ci", "--no-audit", "--no-fund", "--loglevel=error", *quick]
    try:
        subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"not proven: kafkajs cannot be installed from npm's registry ({type(error).__name__})")
    return folder


def test_kafkajs_writes_what_we_read_and_reads_what_we_write(kafka_url: str, kafkajs: Path, tmp_path: Path) -> None:
    """Plain JSON of a kafkajs producer takes effect once and in order by key, what it says twice included; what has
    no id is a dead letter that says so; and a kafkajs consumer reads our events as headers and plain JSON."""
    node, day = program_of("node"), Day()
    environment, servers = environment_of(kafka_url, tmp_path), urlsplit(kafka_url).netloc
    for topic in ("till.order", "till.payment"):
        ran(environment, *TIDEWIRE, "topics", topic, "--create")
    with (
        started(environment, *TIDEWIRE, "run", "tills.billing:billing", hear_errors=True) as service,
        started({}, node, "consumer.js", servers, f"display-{day.orders[0]}", cwd=kafkajs) as display,
    ):
        service.wait_for("tidewire.service.started")
        ran({}, node, "producer.js", servers, given=day.as_lines, cwd=kafkajs)
        payments = day.seen_by(display)
    assert day.expected == by_order(books(tmp_path / "billing.db"))
    assert day.expected == by_order([payment["data"] for payment in payments])
    assert {("till.payment.taken", "billing")} == {(payment["type"], payment["source"]) for payment in payments}
    assert [payment["data"]["order_id"] for payment in payments] == [payment["key"] for payment in payments]
    assert len(payments) == len({payment["id"] for payment in payments})
    assert [("undecodable", "it has no id: the header message-id is not there")] == letters(environment, day)


WHERE = """
const { Partitioners } = require("kafkajs");
const partitionMetadata = [...Array(8).keys()].map((partitionId) => ({ partitionId, leader: 1 }));
const choose = Partitioners.DefaultPartitioner();
const keys = JSON.parse(process.argv[1]);
console.log(JSON.stringify(keys.map((key) => choose({ topic: "t", partitionMetadata, message: { key } }))));
"""


def test_kafkajs_puts_a_key_into_our_lane_of_it(kafkajs: Path) -> None:
    """Its default partitioner is Java's murmur2, and ours too, so both publishers keep one order of a key."""
    keys = [f"o-{number}" for number in range(200)] + ["ä", "", "日本", "🚚"]
    told = ran({}, program_of("node"), "-e", WHERE, json.dumps(keys), cwd=kafkajs)
    assert [murmur2(key.encode(), 8) for key in keys] == json.loads(told)
