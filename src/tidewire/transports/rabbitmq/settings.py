"""An ``amqp://`` URL as settings."""

from __future__ import annotations

import ssl
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.kit.hosts import hosts_in

__all__ = ["RabbitSettings", "settings_of"]

_PORTS = {"amqp": 5672, "amqps": 5671}
_EXAMPLE = "amqp://user:password@host:5672/vhost"
_SETTINGS = "docs/rabbitmq.md lists the settings"


class RabbitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a URL says. *timeout*: after so many seconds a publish or a question without an answer is given up.
    *replicas*: how many nodes of a cluster hold each queue, -1 for the broker's default."""

    servers: tuple[tuple[str, int], ...]
    user: str = "guest"
    password: str = "guest"  # noqa: S105 - the broker's own default, which it takes from the same machine alone
    vhost: str = "/"
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    timeout: float = 30.0
    replicas: int = -1
    message_bytes_max: int = 1_048_576

    @property
    def what(self) -> str:
        """The broker, for people: no user, no password."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.servers)
        return f"{'amqps' if self.tls else 'amqp'}://{hosts}/{quote(self.vhost, safe='') if self.vhost != '/' else ''}"

    def context(self) -> ssl.SSLContext | None:
        """Return how to speak TLS: the broker's certificate is always checked; None without TLS.

        Raises:
            ConfigurationError: a file cannot be read.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(f"{self.what}: ca=, cert= or key= cannot be used: {error}") from error
        return context


class _Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    ca: str = ""
    cert: str = ""
    key: str = ""
    timeout: float = 30.0
    replicas: int = -1
    message_bytes_max: int = 1_048_576


def settings_of(url: str) -> RabbitSettings:
    """Return the settings that *url* holds: ``amqp://[user:password@]host[:port],…[/vhost][?setting=value&…]``.

    Raises:
        ConfigurationError: it names no broker, or holds an unknown or impossible setting.
    """
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    if parts.scheme not in _PORTS or not hosts:
        raise ConfigurationError("an amqp:// URL names a broker", hint=_EXAMPLE)
    try:
        query = msgspec.convert(dict(parse_qsl(parts.query, keep_blank_values=True)), _Query, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"an amqp:// URL: {error}", hint=_SETTINGS) from error
    if not 0.1 <= query.timeout <= 3600 or not 1024 <= query.message_bytes_max <= 134_217_728:
        raise ConfigurationError(
            "timeout must lie between 0.1 and 3600 seconds, message_bytes_max between 1024 and 134217728"
        )
    if query.replicas == 0 or query.replicas < -1:
        raise ConfigurationError(f"replicas must be a number of nodes, or -1, not {query.replicas}")
    tls = parts.scheme == "amqps"
    if not tls and (query.ca or query.cert or query.key):
        raise ConfigurationError("ca=, cert= and key= belong to amqps://", hint=_SETTINGS)
    user, _, password = credentials.partition(":")
    return RabbitSettings(
        servers=tuple(hosts_in(hosts, port=_PORTS[parts.scheme], example=_EXAMPLE)),
        user=unquote(user) if credentials else "guest",
        password=unquote(password) if credentials else "guest",
        vhost=unquote(parts.path[1:]) or "/",
        tls=tls,
        ca=query.ca,
        cert=query.cert,
        key=query.key,
        timeout=query.timeout,
        replicas=query.replicas,
        message_bytes_max=query.message_bytes_max,
    )
