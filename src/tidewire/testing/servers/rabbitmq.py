"""A RabbitMQ of one's own, for a test, a benchmark or the demo: free ports on 127.0.0.1, a data folder, one pid.

`private_cluster` makes several of them one broker.

Needs only the standard library and the server's programs, as Debian's package ``rabbitmq-server`` brings them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
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
    ended,
    free_port,
    launched,
    started,
    wait_until_ready,
)

__all__ = ["LIMITED", "NoServer", "RabbitServer", "private_cluster", "private_rabbit"]

_READY_MAX = 120.0
_CONTROL_MAX = 60.0
_FREE_MIN = "50MB"
_FREE_NEVER = "1000000GB"
_DEBIAN = "usr/lib/rabbitmq/bin"
LIMITED = ("limited", "limited-secret")
"""Name and password of a user who may log in, and do nothing else."""
_SYNC = "[dets:sync(Table) || Table <- dets:all()]."
# Erlang's port mapper would outlive the node that starts it. As a child of the shell, which becomes the node, it ends
# with the node, however that ends.
_START = 'setpriv --pdeathsig KILL "$1" -port "$ERL_EPMD_PORT" -address 127.0.0.1 & exec "$2" -noinput'


@dataclass
class RabbitServer(OwnProcess):
    """One node in *folder*. *settings* go into its ``rabbitmq.conf``; with *tls* it has a second listener.

    *root*: where the packages lie that bring its programs, unpacked as Debian's are; installed ones lie under ``/``.
    It listens on 127.0.0.1 alone, as do its helpers. Its user ``worker`` may do everything; the other is `LIMITED`.
    *home*: where the nodes of a cluster share the secret by which they know each other; they share the port mapper
    at *mapper_port* as well, which is none of theirs.
    """

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    tls: bool = False
    root: Path = Path("/")
    port: int = field(default_factory=free_port)
    tls_port: int = field(default_factory=free_port)
    node_port: int = field(default_factory=free_port)
    mapper_port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(8))
    home: Path | None = None
    tick: int = 60
    _process: subprocess.Popen[bytes] | None = None

    @property
    def node(self) -> str:
        """Its name among nodes."""
        return f"tidewire-{self.port}@localhost"

    @property
    def address(self) -> str:
        """Host and port of the plain listener."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The URL by which ``worker`` opens it."""
        return self.url_of("worker", self.password)

    @property
    def tls_url(self) -> str:
        """The same over TLS; `authority` vouches for the server."""
        return f"amqps://worker:{self.password}@127.0.0.1:{self.tls_port}"

    @property
    def authority(self) -> Path:
        """The certificate that a client must trust."""
        return self.folder / "certificate.pem"

    def url_of(self, user: str, password: str, *, port: int = 0) -> str:
        """Return the URL of *user*, at *port* where a test has put a proxy."""
        return f"amqp://{user}:{password}@127.0.0.1:{port or self.port}"

    def create(self) -> None:
        """Write the configuration, and with TLS a certificate.

        Raises:
            NoServer: what makes the certificate is missing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "listeners.tcp.1": self.address,
            "disk_free_limit.absolute": _FREE_MIN,
            "load_definitions": str(self.folder / "definitions.json"),
            **(self._certified() if self.tls else {}),
            **self.settings,
        }
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.folder / "rabbitmq.conf").write_text(text)
        definitions = self.folder / "definitions.json"
        definitions.touch(0o600)
        definitions.write_text(json.dumps(self._definitions()))

    def start(self, *, outlives: bool = False, wait: bool = True) -> None:
        """Start it and wait until it takes connections. Unless it *outlives* us, it ends with this process.

        Raises:
            NoServer: it did not start; its log is in the text.
        """
        program = str(self._programs() / "rabbitmq-server")
        alone = ["sh", "-c", _START, "sh", self.mapper(), program]
        self._process = launched(
            alone if self.home is None else [program, "-noinput"],
            self.folder,
            end_by=None if outlives else signal.SIGKILL,
            environment=self._environment(),
        )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until it takes connections.

        Raises:
            NoServer: it has ended, or takes too long.
        """
        assert self._process is not None, "it has been started"
        wait_until_ready(self._process, self.is_ready, name="RabbitMQ", folder=self.folder, seconds=_READY_MAX)

    def is_ready(self) -> bool:
        """Whether a broker speaks on every listener's port."""
        return _greets(self.port) and (not self.tls or _listens(self.tls_port))

    def restart(self) -> None:
        """Stop it and start it again, on the same ports and data."""
        self.stop()
        self.start()

    def raise_disk_alarm(self) -> None:
        """Let it believe that the disk is full: it blocks whoever publishes until `clear_disk_alarm`."""
        self.control("set_disk_free_limit", _FREE_NEVER)

    def clear_disk_alarm(self) -> None:
        """Let it see that the disk has room."""
        self.control("set_disk_free_limit", _FREE_MIN)

    def write_down(self) -> None:
        """Let it write down at once what it else does a while later: the names of queues that were made just now.

        One that is killed before may not know them any more: seen with 3.10.8.
        """
        environment = self._environment()
        program = shutil.which("erl_call", path=environment["PATH"])
        if program is None:
            self.control("eval", _SYNC)
            return
        done = subprocess.run(  # noqa: S603 - a program beside that server, a hundred times as quick as the other
            [program, "-n", self.node, "-e"],
            input=f"{_SYNC}\n",
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=_CONTROL_MAX,
        )
        if not done.stdout.startswith("{ok,"):
            raise RuntimeError(f"the broker did not write down what it has: {done.stdout}{done.stderr}")

    def control(self, *arguments: str, program: str = "rabbitmqctl") -> str:
        """Run ``rabbitmqctl``, or *program* beside it, against it and return what it prints; takes seconds.

        Raises:
            RuntimeError: it failed; what it said is in the text.
        """
        done = subprocess.run(  # noqa: S603 - a program beside that server
            [str(self._programs() / program), "--quiet", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env=self._environment(),
            timeout=_CONTROL_MAX,
        )
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)} failed: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def lose_data(self) -> None:
        """Delete what it has stored, and kill it if it runs: it comes back as a node that nobody knows."""
        self.kill()
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def mapper(self) -> str:
        """Return Erlang's port mapper.

        Raises:
            NoServer: it is not installed, or what ends it with its node.
        """
        mapper = shutil.which("epmd", path=self._environment()["PATH"])
        if mapper is None or shutil.which("setpriv") is None:
            raise NoServer("RabbitMQ needs `epmd` of Erlang and `setpriv` of util-linux on PATH")
        return mapper

    def _programs(self) -> Path:
        """Return the folder with `rabbitmq-server` and `rabbitmqctl`.

        On Debian those on PATH become the user ``rabbitmq``, or refuse to run; the ones behind them run as we do.

        Raises:
            NoServer: they are not installed.
        """
        on_path = shutil.which("rabbitmq-server") if self.root == Path("/") else None
        for folder in (self.root / _DEBIAN, *([Path(on_path).resolve().parent] if on_path else [])):
            if (folder / "rabbitmq-server").exists() and (folder / "rabbitmqctl").exists():
                return folder
        raise NoServer("RabbitMQ is not installed: apt-get install rabbitmq-server")

    def _environment(self) -> dict[str, str]:
        """Return our environment with nothing of another RabbitMQ in it: what this one has is in its folder."""
        foreign = ("RABBITMQ_", "ERL_", "XDG_", "NOTIFY_SOCKET")
        own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return own | {
            "HOME": str(self.home or self.folder),  # for Erlang's cookie
            "PATH": os.pathsep.join([str(self.root / "usr/lib/erlang/bin"), own.get("PATH", os.defpath)]),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.mapper_port),
            "RABBITMQ_ALLOW_INPUT": "1",  # the script becomes the node, instead of waiting for it
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),  # for what Erlang leaves behind when it fails
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self.node_port),
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",  # bound, two nodes would share one core of several
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(
                ("-kernel inet_dist_use_interface {127,0,0,1}", f"net_ticktime {self.tick}")
            ),
        }

    def _definitions(self) -> dict[str, object]:
        users = ({"name": "worker", "password": self.password}, {"name": LIMITED[0], "password": LIMITED[1]})
        everything, nothing = dict.fromkeys(_RIGHTS, ".*"), dict.fromkeys(_RIGHTS, "^$")
        return {
            "vhosts": [{"name": "/"}],
            "users": [{**user, "tags": ""} for user in users],
            "permissions": [
                {"user": "worker", "vhost": "/", **everything},
                {"user": LIMITED[0], "vhost": "/", **nothing},
            ],
        }

    def _certified(self) -> dict[str, str]:
        if shutil.which("openssl") is None:
            raise NoServer("openssl is not installed: apt-get install openssl")
        key = self.folder / "key.pem"
        subprocess.run(  # noqa: S603 - fixed words
            [
                *("openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-subj", "/CN=localhost"),
                *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
                *("-keyout", str(key), "-out", str(self.authority)),
            ],
            capture_output=True,
            check=True,
        )
        return {
            "listeners.ssl.1": f"127.0.0.1:{self.tls_port}",
            "ssl_options.cacertfile": str(self.authority),
            "ssl_options.certfile": str(self.authority),
            "ssl_options.keyfile": str(key),
        }


_RIGHTS = ("configure", "write", "read")


@contextlib.contextmanager
def private_rabbit(*, tls: bool = False, root: Path = Path("/"), **settings: str) -> Generator[RabbitServer]:
    """Yield a running node in a temporary folder, and remove it. *settings* with ``__`` for ``.``.

    *root* as for `RabbitServer`: of a RabbitMQ that is not installed.
    """
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    server = started("rabbitmq", lambda folder: RabbitServer(folder, dotted, tls, root.absolute()))
    try:
        yield server
    finally:
        server.remove()


@contextlib.contextmanager
def private_cluster(
    size: int = 3, *, root: Path = Path("/"), tick: int = 4, **settings: str
) -> Generator[list[RabbitServer]]:
    """Yield the running nodes of one cluster, in which a minority stops; remove them in the end.

    *settings* with ``__`` for ``.``, *root* as for `private_rabbit`. After *tick* seconds, or a quarter more, a node
    that is silent counts as gone. A node whose data is deleted while it does not run is to be forgotten
    (``rabbitmqctl forget_cluster_node``) before it starts, and joins anew then.
    """
    folder = Path(tempfile.mkdtemp(prefix="tidewire-rabbitmq-"))
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    mapper_port, password = free_port(), secrets.token_hex(8)
    nodes = [
        RabbitServer(
            folder / str(number),
            root=root.absolute(),
            mapper_port=mapper_port,
            password=password,
            home=folder,
            tick=tick,
        )
        for number in range(1, size + 1)
    ]
    names = {f"cluster_formation.classic_config.nodes.{number}": one.node for number, one in enumerate(nodes, 1)}
    mapper = None
    try:
        mapper = launched(
            [nodes[0].mapper(), "-port", str(mapper_port), "-address", "127.0.0.1"], folder, end_by=signal.SIGKILL
        )
        for number, one in enumerate(nodes):
            one.settings = {
                "cluster_formation.peer_discovery_backend": "classic_config",
                **names,
                "cluster_partition_handling": "pause_minority",
                **dotted,
            }
            one.create()
            one.start(wait=not number)  # the others join what is there
        for one in nodes:
            one.wait_until_ready()
        yield nodes
    finally:
        for one in nodes:
            one.remove()
        if mapper is not None:
            ended(mapper, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _greets(port: int) -> bool:
    """Whether a broker answers there with the first frame of AMQP 0-9-1."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False
