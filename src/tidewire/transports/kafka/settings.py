"""A ``kafka://`` URL as settings, and the clients' configurations made of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.kit.hosts import hosts_in

__all__ = ["Conf", "KafkaSettings", "admin_conf", "fetcher_conf", "member_conf", "producer_conf", "settings_of"]

Conf: TypeAlias = dict[str, str | int | float | bool]
_EXAMPLE = "kafka://host:9092,host2:9092?tls=true&compression=zstd"
_GROUP_EPOCH_LEAST = (2, 15, 0)
_HEARTBEAT = 1_000
"""By the older protocol the client looks no oftener than once in so many milliseconds whether a heartbeat is due."""
_OVERHEAD = 65_536
"""Bytes that a key, our own headers and the record's frame may add to a message."""
_OURS = frozenset(
    {
        *("acks", "enable.idempotence", "enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset"),
        *("isolation.level", "partitioner", "group.id", "group.protocol", "group.remote.assignor", "client.id"),
        *("partition.assignment.strategy", "bootstrap.servers", "message.timeout.ms", "transactional.id"),
        *("allow.auto.create.topics", "session.timeout.ms", "max.poll.interval.ms", "check.crcs", "message.max.bytes"),
    }
)


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What `settings_of` found in a URL. *client* goes to librdkafka as it is; what the promises stand on is refused.

    *timeout*: after so long a publish or a settle without an answer is given up. *replication*: of topics that are
    created, -1 for the broker's default. *protocol*: ``consumer`` (KIP-848), ``classic``, or ``auto``: the newer one
    where client and broker have it. *instance*: the member's name over restarts (static membership).
    """

    servers: str
    security: Mapping[str, str]
    compression: str
    timeout: float
    replication: int
    message_bytes_max: int
    protocol: str
    instance: str
    client: Mapping[str, str]

    @property
    def what(self) -> str:
        """The broker, for people: no user, no password."""
        return f"kafka://{self.servers}"


class _Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tls: bool | None = None
    sasl: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    compression: str = "none"
    timeout: float = 30.0
    replication: int = -1
    message_bytes_max: int = 1_048_576 - _OVERHEAD
    protocol: str = "auto"
    instance: str = ""


def settings_of(url: str) -> KafkaSettings:
    """Return the settings that *url* holds: ``kafka://[user:password@]host:port,…[?setting=value&…]``.

    Raises:
        ConfigurationError: it names no broker, or holds an unknown or impossible setting.
    """
    parts = urlsplit(url)
    credentials, _, servers = parts.netloc.rpartition("@")
    if not servers or parts.path.strip("/"):
        raise ConfigurationError("a kafka:// URL names brokers and no path", hint=_EXAMPLE)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    client = {name.removeprefix("client."): value for name, value in given.items() if name.startswith("client.")}
    if wrong := sorted(_OURS & set(client)):
        raise ConfigurationError(
            f"{', '.join(wrong)} cannot be set: the promises stand on it", hint="docs/kafka.md lists the settings"
        )
    try:
        query = msgspec.convert(
            {name: value for name, value in given.items() if not name.startswith("client.")}, _Query, strict=False
        )
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"a kafka:// URL: {error}", hint="docs/kafka.md lists the settings") from error
    if query.protocol not in ("auto", "consumer", "classic"):
        raise ConfigurationError(f"protocol must be auto, consumer or classic, not {query.protocol!r}")
    if not 0.1 <= query.timeout <= 3600 or query.message_bytes_max < 1024:
        raise ConfigurationError("timeout must lie between 0.1 and 3600 seconds, message_bytes_max above 1024")
    user, _, password = credentials.partition(":")
    hosts = hosts_in(servers, port=9092, example=_EXAMPLE)
    return KafkaSettings(
        servers=",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts),
        security=_security(query, unquote(user), unquote(password)),
        compression=query.compression,
        timeout=query.timeout,
        replication=query.replication,
        message_bytes_max=query.message_bytes_max,
        protocol=query.protocol,
        instance=query.instance,
        client=client,
    )


def _security(query: _Query, user: str, password: str) -> dict[str, str]:
    """Return what librdkafka must know to be let in. A password goes in the clear only where ``tls=false`` says so.

    Raises:
        ConfigurationError: a user without a password, or a password without SASL.
    """
    sasl = query.sasl or ("SCRAM-SHA-512" if user else "")
    if sasl and not user:
        raise ConfigurationError("sasl needs a user", hint="kafka://user:password@host:9092?sasl=SCRAM-SHA-512")
    tls = query.tls if query.tls is not None else bool(user or query.ca or query.cert)
    security = {"security.protocol": f"{'sasl_' if sasl else ''}{'ssl' if tls else 'plaintext'}"}
    if sasl:
        security |= {"sasl.mechanisms": sasl, "sasl.username": user, "sasl.password": password}
    for name, value in (
        ("ssl.ca.location", query.ca),
        ("ssl.certificate.location", query.cert),
        ("ssl.key.location", query.key),
    ):
        if value:
            security[name] = value
    return security


def _common(settings: KafkaSettings, name: str) -> Conf:
    return {
        "bootstrap.servers": settings.servers,
        "client.id": name,
        "allow.auto.create.topics": False,
        "socket.timeout.ms": int(settings.timeout * 1000),
        "socket.keepalive.enable": True,
        "socket.nagle.disable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 2_000,
        "log_level": 0,  # what matters comes by callbacks and is told by ours
        **settings.client,
        **settings.security,
    }


def admin_conf(settings: KafkaSettings, name: str) -> Conf:
    """Return how an admin client, or one that only asks, is made."""
    return _common(settings, name)


def producer_conf(settings: KafkaSettings, name: str) -> Conf:
    """Return how a producer is made: every replica in sync has it before ``stored``; no retry doubles or reorders."""
    timeout = int(settings.timeout * 1000)
    return {
        **_common(settings, name),
        "acks": "all",
        "enable.idempotence": True,
        "message.timeout.ms": timeout,
        "request.timeout.ms": min(timeout, 30_000),
        "message.max.bytes": settings.message_bytes_max + _OVERHEAD,
        "compression.type": settings.compression,
        "linger.ms": 0,
        "queue.buffering.max.messages": 100_000,
        "topic.metadata.refresh.interval.ms": 60_000,
    }


def member_conf(
    settings: KafkaSettings, name: str, *, group: str, ordering: str, lease: timedelta, modern: bool
) -> Conf:
    """Return how a member of a group is made. It fetches nothing: it holds its place and commits.

    A process that reads some topics by key and others without order has two members in its group: *ordering* tells
    their names over restarts apart.
    """
    conf: Conf = {
        **_common(settings, name),
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "latest",
        "max.poll.interval.ms": max(300_000, int(lease.total_seconds() * 1000)),
        "fetch.wait.max.ms": 500,
    }
    if settings.instance:
        conf["group.instance.id"] = f"{settings.instance}-{ordering}"
    if modern:  # how long a silent member stays is the broker's or the group's setting there
        conf |= {"group.protocol": "consumer", "group.remote.assignor": "uniform"}
    else:
        session = max(3 * _HEARTBEAT, int(lease.total_seconds() * 1000))
        conf |= {
            "group.protocol": "classic",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": session,
            "heartbeat.interval.ms": _HEARTBEAT,  # a member hears by its next one that another comes or goes
        }
    return conf


def fetcher_conf(settings: KafkaSettings, name: str, *, group: str) -> Conf:
    """Return how the client is made that reads the partitions it is told, and is no member of anything."""
    largest = settings.message_bytes_max + _OVERHEAD
    return {
        **_common(settings, name),
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "check.crcs": True,
        "enable.partition.eof": False,
        "fetch.wait.max.ms": 100,
        "fetch.error.backoff.ms": 100,
        "queued.min.messages": 2_000,
        "fetch.queue.backoff.ms": 5,  # a full queue is looked at again soon: by default a partition rests a second
        "queued.max.messages.kbytes": max(1_024, largest // 1_024),
        "fetch.message.max.bytes": largest,
        "fetch.max.bytes": max(1 << 20, largest),
        "receive.message.max.bytes": max(8 << 20, 2 * largest),
    }


def client_is_modern(version: tuple[int, ...]) -> bool:
    """Whether a librdkafka of this *version* holds a place by the newer protocol without stalling."""
    return version >= _GROUP_EPOCH_LEAST
