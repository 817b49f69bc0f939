"""What every test run prints at its end: what was *not* proven, counted, so that a skip is never silent.

And the servers that tests share, PostgreSQL, Apache Kafka and RabbitMQ: those that TIDEWIRE_TEST_POSTGRESQL,
TIDEWIRE_TEST_KAFKA and TIDEWIRE_TEST_RABBITMQ name, else private ones, which the first test that asks for one starts
and the end of the run stops.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import kafka_server as kafka
import pytest
import rabbitmq_server as rabbitmq
from hypothesis import HealthCheck, settings
from postgres_server import VARIABLE, NoServer, private_server

from tidewire.testing.servers.processes import given_or

# The shipped suites are not test files: pytest shows their assertions' values only if it is told before anybody
# imports them, and the first to do so may be any test module.
pytest.register_assert_rewrite(
    "tidewire.testing.codecs",
    "tidewire.testing.stores",
    "tidewire.testing.transports",
)

# A property that holds does so on a busy machine too: how long an example takes is no part of it.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line per reason for a skip, and their number, before the closing line."""
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if not reasons:
        terminalreporter.write_line("proven: nothing was skipped")
        return
    terminalreporter.section(f"NOT PROVEN: {sum(reasons.values())} tests were skipped", sep="!", red=True, bold=True)
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count:5}  {reason}")


def _reason(report: pytest.TestReport) -> str:
    detail = report.longrepr
    return str(detail[2] if isinstance(detail, tuple) else detail).removeprefix("Skipped: ")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL server, as its superuser; skips where none can be had."""
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(given_or(VARIABLE, private_server))
        except NoServer as error:
            pytest.skip(f"not proven: needs a PostgreSQL server: {error}")
        yield url


_databases = itertools.count(1)


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """The URL of an empty database of the test's own; whoever is still connected at its end is cut off."""
    import psycopg

    name = f"test_{os.getpid()}_{next(_databases)}"
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
    yield urlsplit(postgresql_server)._replace(path=f"/{name}").geturl()
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[kafka.KafkaServer]:
    """A private Apache Kafka that tests may kill, pause and restart; skips where none can be had, and on CI."""
    if os.environ.get("CI"):
        pytest.skip("not proven: the Kafka suite takes ten minutes, and CI leaves it out; make test runs it")
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(kafka.private_kafka())
        except kafka.NoServer as error:
            pytest.skip(f"not proven: needs an Apache Kafka server: {error}")
        yield server


@pytest.fixture
def kafka_url(request: pytest.FixtureRequest) -> str:
    """The URL of an Apache Kafka that a test shares with others and leaves as it is."""
    if given := os.environ.get(kafka.VARIABLE):
        return given
    server: kafka.KafkaServer = request.getfixturevalue("kafka_server")
    return server.url


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[rabbitmq.RabbitServer]:
    """A private RabbitMQ, with TLS, that tests may kill, pause and restart; skips where none can be had.

    It is the installed one, or that under ``TIDEWIRE_RABBITMQ_ROOT``.
    """
    root = Path(os.environ.get("TIDEWIRE_RABBITMQ_ROOT", "/"))
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(rabbitmq.private_rabbit(tls=True, root=root))
        except rabbitmq.NoServer as error:
            pytest.skip(f"not proven: needs a RabbitMQ server: {error}")
        yield server


@pytest.fixture
def rabbitmq_url(request: pytest.FixtureRequest) -> str:
    """The URL of a RabbitMQ that a test shares with others and leaves as it is."""
    if given := os.environ.get(rabbitmq.VARIABLE):
        return given
    server: rabbitmq.RabbitServer = request.getfixturevalue("rabbitmq_server")
    return server.url
