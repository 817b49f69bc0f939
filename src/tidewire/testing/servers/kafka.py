"""An Apache Kafka of one's own, for a test, a benchmark or the demo: free ports on 127.0.0.1, a data folder, one pid.

Needs the standard library, a Java 17 or newer, and `mvn` for the first time: the server's archives (54 MB) stay where
`fetched` says.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tidewire.testing.servers.processes import (
    NoServer,
    OwnProcess,
    free_port,
    launched,
    started,
    wait_until_ready,
)

__all__ = ["LIBS", "USERS", "VERSION", "KafkaServer", "NoServer", "fetched", "private_cluster", "private_kafka"]

VERSION = "4.1.1"
LIBS = "TIDEWIRE_TEST_KAFKA_LIBS"
"""The variable that names the folder of the server's archives."""
_OLDEST_JAVA = 17
_READY_MAX = 120.0
_POM = """<project><modelVersion>4.0.0</modelVersion>
 <groupId>local</groupId><artifactId>kafka-rt</artifactId><version>1</version><packaging>pom</packaging>
 <dependencies>{}</dependencies></project>
"""
_ARTIFACTS = (
    ("org.apache.kafka", "kafka_2.13", VERSION),
    ("org.apache.kafka", "kafka-tools", VERSION),
    ("org.apache.logging.log4j", "log4j-api", "2.24.3"),
    ("org.apache.logging.log4j", "log4j-core", "2.24.3"),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3"),
)
_LOGGING = """rootLogger.level=WARN
appender.c.type=Console
appender.c.name=C
appender.c.layout.type=PatternLayout
appender.c.layout.pattern=%d %p %c{1} %m%n
rootLogger.appenderRef.c.ref=C
"""
_ALONE = (
    "offsets.topic.replication.factor",
    "transaction.state.log.replication.factor",
    "transaction.state.log.min.isr",
    "share.coordinator.state.topic.replication.factor",
    "share.coordinator.state.topic.min.isr",
)
USERS = {"worker": "worker-secret", "limited": "limited-secret"}
_PROPERTIES = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
    "super.users": "User:ANONYMOUS;User:worker",
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "num.partitions": "4",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    # Tests have leases of less than a second; a production broker refuses less than six.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "300",
    "group.consumer.min.session.timeout.ms": "300",
    "group.consumer.session.timeout.ms": "1500",
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.consumer.heartbeat.interval.ms": "100",
    "broker.session.timeout.ms": "2000",  # a killed one is not let in again before the controller has given it up
    "broker.heartbeat.interval.ms": "300",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "log.retention.check.interval.ms": "1000",
    "num.network.threads": "2",
    "num.io.threads": "4",
}


@dataclass
class KafkaServer(OwnProcess):
    """One broker in *folder*. *settings* go into its configuration.

    *id* and *voters* make it one of a cluster. Besides the plain listener it has one on *behind_port* that tells its
    clients to come through *proxy_port*, where a test may put a proxy, and one on *password_port* that lets in the
    users of `USERS`. Who needs no password may do everything; what the others may not, a test says by rules.
    """

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    id: int = 1
    voters: str = ""
    cluster: str = "dGlkZXdpcmUtdGVzdC0wMQ"
    port: int = field(default_factory=free_port)
    controller_port: int = field(default_factory=free_port)
    behind_port: int = field(default_factory=free_port)
    proxy_port: int = field(default_factory=free_port)
    password_port: int = field(default_factory=free_port)
    heap_mib: int = 384
    _process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port of the plain listener."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The URL by which tidewire opens it."""
        return f"kafka://{self.address}"

    def create(self) -> None:
        """Write the configuration and format the data folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "log4j2.properties").write_text(_LOGGING)
        listeners = f"PLAINTEXT://{self.address},BEHIND://127.0.0.1:{self.behind_port}"
        listeners += f",PASSWORD://127.0.0.1:{self.password_port}"
        properties = {
            "node.id": str(self.id),
            "controller.quorum.voters": self.voters or f"{self.id}@127.0.0.1:{self.controller_port}",
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": listeners.replace(f":{self.behind_port},", f":{self.proxy_port},"),
            "listener.security.protocol.map": ",".join(
                (*(f"{name}:PLAINTEXT" for name in ("CONTROLLER", "PLAINTEXT", "BEHIND")), "PASSWORD:SASL_PLAINTEXT")
            ),
            "listener.name.password.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.password.plain.sasl.jaas.config": _jaas(),
            "log.dirs": str(self.folder / "data"),
            **dict.fromkeys(_ALONE, "1"),
            **_PROPERTIES,
            **self.settings,
        }
        text = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self.folder / "server.properties").write_text(text)
        done = subprocess.run(  # noqa: S603 - a program that was found
            [*self._java(), "kafka.tools.StorageTool", "format", "-t", self.cluster, "-c", "server.properties"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NoServer(f"kafka.tools.StorageTool failed: {done.stderr.strip()[-1000:]}")

    def start(self, *, outlives: bool = False, wait: bool = True) -> None:
        """Start it and wait until it takes connections. Unless it *outlives* us, it ends with this process.

        Raises:
            NoServer: it did not start; its log is in the text.
        """
        self._process = launched(
            [*self._java(), "kafka.Kafka", str(self.folder / "server.properties")],
            self.folder,
            end_by=None if outlives else signal.SIGKILL,
        )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the plain listener takes connections.

        Raises:
            NoServer: it has ended, or takes too long.
        """
        assert self._process is not None, "it has been started"
        wait_until_ready(
            self._process, lambda: _answers(self.port), name="Apache Kafka", folder=self.folder, seconds=_READY_MAX
        )

    def _java(self) -> list[str]:
        java, libs = _find_java(), fetched()
        flags = (f"-Xmx{self.heap_mib}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
        return [java, *flags, "-Dlog4j2.configurationFile=log4j2.properties", "-cp", f"{libs}/*"]


def _jaas() -> str:
    users = " ".join(f'user_{name}="{password}"' for name, password in USERS.items())
    return f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"


def _find_java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None) or shutil.which("java")
    if java is None:
        raise NoServer("Java is not installed: apt-get install openjdk-17-jre-headless")
    said = subprocess.run(  # noqa: S603 - a program that was found
        [java, "-version"], capture_output=True, text=True, check=False
    ).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < _OLDEST_JAVA:
        raise NoServer(f"{java} is older than {_OLDEST_JAVA}: {said.splitlines()[:1]}")
    return java


def fetched() -> Path:
    """Return the folder with the server's archives, fetching them the first time.

    It is the one that `LIBS` names, else one in the user's cache.

    Raises:
        NoServer: they are not there, and cannot be fetched.
    """
    given = os.environ.get(LIBS)
    libs = Path(given) if given else _cache() / "tidewire" / "kafka" / VERSION
    if libs.is_dir():
        return libs
    maven = shutil.which("mvn")
    if maven is None:
        raise NoServer(f"Maven is not installed, and {libs} does not hold the server: apt-get install maven")
    libs.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=libs.parent) as scratch:
        wanted = "".join(
            f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>"
            for group, name, version in _ARTIFACTS
        )
        (Path(scratch) / "pom.xml").write_text(_POM.format(wanted))
        done = subprocess.run(  # noqa: S603 - a program that was found
            [maven, "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=libs"],
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode:
            raise NoServer(f"Maven could not fetch Apache Kafka: {(done.stdout + done.stderr).strip()[-500:]}")
        with contextlib.suppress(OSError):  # somebody else has fetched them meanwhile
            (Path(scratch) / "libs").rename(libs)
    return libs


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@contextlib.contextmanager
def private_kafka(**settings: str) -> Generator[KafkaServer]:
    """Yield a running broker in a temporary folder, and remove it. *settings* with ``_`` for ``.``."""
    server = started("kafka", lambda folder: KafkaServer(folder, _dotted(settings)))
    try:
        yield server
    finally:
        server.remove()


@contextlib.contextmanager
def private_cluster(size: int = 3, **settings: str) -> Generator[list[KafkaServer]]:
    """Yield the running brokers of a cluster that replicates everything and needs two of them for a write."""
    folder = Path(tempfile.mkdtemp(prefix="tidewire-kafka-"))
    replicated = {
        "broker.session.timeout.ms": "1500",
        "default.replication.factor": str(size),
        "min.insync.replicas": "2",
        "offsets.topic.replication.factor": str(size),
        "transaction.state.log.replication.factor": str(size),
        "transaction.state.log.min.isr": "2",
    }
    servers = [KafkaServer(folder / str(number), {**replicated, **_dotted(settings)}, number) for number in (1, 2, 3)]
    voters = ",".join(f"{one.id}@127.0.0.1:{one.controller_port}" for one in servers)
    try:
        for one in servers:
            one.voters = voters
            one.create()
            one.start(wait=False)
        for one in servers:
            one.wait_until_ready()
        yield servers
    finally:
        for one in servers:
            one.remove()
        shutil.rmtree(folder, ignore_errors=True)


def _dotted(settings: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "."): value for name, value in settings.items()}


def _answers(port: int) -> bool:
    """Whether a broker answers there: it says which requests it knows."""
    request = b"\x00\x00\x00\x0e\x00\x12\x00\x00\x00\x00\x00\x01\x00\x04test"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(request)
            return len(connection.recv(8)) == 8
    except OSError:
        return False
