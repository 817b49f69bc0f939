"""What is promised to services by the settings they would run with: computed, and compared with broker and store."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tidewire.config import Settings, look_at_broker, look_at_store, masked
from tidewire.errors import StoreRefused, StoreUnavailable, TransportRefused, TransportUnavailable
from tidewire.model import Change, GroupSpec, TopicSpec
from tidewire.rules.findings import Finding
from tidewire.rules.functions import returned_events
from tidewire.rules.guarantees import Guarantee, Terms, judge
from tidewire.rules.topology import wanted_topics
from tidewire.runtime.service import Service

__all__ = ["Examined", "Report", "check_services"]


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """One service: under which terms it runs, and what is promised to each of its handlers."""

    name: str
    terms: Terms
    guarantees: Sequence[Guarantee]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found, errors first. *unseen*: what could not be looked at, and why."""

    services: Sequence[Examined]
    findings: Sequence[Finding]
    unseen: Sequence[str]

    @property
    def safe(self) -> bool:
        """Whether nothing has to be refused."""
        return not any(finding.level == "error" for finding in self.findings)


async def check_services(services: Sequence[Service], settings: Settings, *, offline: bool = False) -> Report:
    """Check *services* with *settings*; *offline* looks at neither broker nor store. Nothing is created or changed.

    Raises:
        ConfigurationError: a URL that cannot be.
        TransportUnavailable: the broker cannot be reached, and only it knows what it promises.
    """
    checking = _Checking(settings, offline=offline)
    handlers = [handler for service in services for handler in service.handlers]
    events = [event for one in handlers for event in (one.event, *returned_events(one.function))]
    await checking.look([*dict.fromkeys(event.topic for event in events if event.kind == "integration")])
    examined = [await checking.one(service) for service in services]
    findings = [*_among(services, settings), *checking.findings]
    findings.sort(key=lambda finding: finding.level)  # stable, and "error" comes before "warning"
    return Report(services=examined, findings=findings, unseen=checking.unseen)


class _Checking:
    """One check: what it finds on the way, and what it cannot see."""

    def __init__(self, settings: Settings, *, offline: bool) -> None:
        self._settings = settings
        self._broker = look_at_broker(settings.broker)
        self._store = look_at_store(settings.store) if settings.store and not offline else None
        # What lives in the process that runs it has nothing that could be compared.
        self._compares = not offline and not settings.broker.startswith("memory:")
        self._topics: Sequence[TopicSpec] = ()
        self.findings: list[Finding] = []
        self.unseen: list[str] = []

    async def look(self, names: Sequence[str]) -> None:
        """Look at the topics *names*, and at no others; where nobody can, there is nothing to compare."""
        self._capabilities = await self._broker.capabilities()
        if not self._compares:
            return
        try:
            self._topics = await self._broker.specs(names)
        except TransportUnavailable as error:
            self.unseen.append(f"topics and groups: {error.message}")
            self._compares = False
        except TransportRefused as error:
            where = masked(self._settings.broker)
            self.findings.append(_error("broker-refused", where, error.message, error.hint))
            self._compares = False

    async def one(self, service: Service) -> Examined:
        """Examine one service."""
        settings = self._settings
        terms = Terms(
            capabilities=self._capabilities,
            has_store=bool(settings.store),
            store_durable=not settings.store.startswith("memory:"),
            lease=settings.seconds("lease"),
            grace=settings.seconds("grace"),
            max_hold=settings.seconds("max_hold"),
            concurrency=service.concurrency,
            prefetch=service.prefetch,
            retention={topic.name: topic.retention for topic in self._topics},
            marked=await self._marked(service.name),
        )
        recurring = [one.name for one in service.recurring]
        plains = service.plains.values()
        judgement = judge(service.name, service.handlers, terms=terms, recurring=recurring, plains=plains)
        self.findings += judgement.findings
        if self._compares:
            await self._compare(service)
        return Examined(name=service.name, terms=terms, guarantees=judgement.guarantees)

    async def _marked(self, group: str) -> frozenset[str]:
        if self._store is None:
            return frozenset()
        try:
            return await self._store.marked(group)
        except StoreUnavailable as error:
            self.unseen.append(f"inbox marks of {group}: {error.message}")
        except StoreRefused as error:
            self.findings.append(_error("store-refused", masked(self._settings.store), error.message, error.hint))
        return frozenset()

    async def _compare(self, service: Service) -> None:
        """Compare the broker's topics and groups with what *service* needs, and what it publishes."""
        names = list(dict.fromkeys(one.event.topic for one in service.handlers if one.event.kind == "integration"))
        if names:
            wanted = wanted_topics(names, lanes=self._settings.lanes, there=self._topics)
            for change in await self._broker.compare(wanted, [GroupSpec(service.name, names)]):
                self._note(service.name, change)
        there = {topic.name for topic in self._topics}
        for handler in service.handlers:
            for event in returned_events(handler.function):
                if event.kind == "integration" and event.topic not in there and not self._settings.provision:
                    what = f"it publishes {event.type}, and the broker has no topic {event.topic}"
                    fix = f"`tidewire topics {event.topic} --create`, or start the service with --provision"
                    where = f"{service.name}.{handler.name}"
                    self.findings.append(_warning("no-topic-to-publish", where, what, fix))

    def _note(self, service: str, change: Change) -> None:
        if change.kind == "conflict":
            fix = "TIDEWIRE_LANES says how many lanes a service expects; a topic's own number never changes"
            self.findings.append(_error("topology-drift", service, f"{change.what}: {change.detail}", fix))
        elif change.kind == "create" and not self._settings.provision:
            what = f"the broker has no {change.what}" + (f" ({change.detail})" if change.detail else "")
            self.findings.append(_error("topology-missing", service, what, "start the service once with --provision"))


def _among(services: Sequence[Service], settings: Settings) -> list[Finding]:
    """Return what is wrong between services that share a broker."""
    found: list[Finding] = []
    names = [service.name for service in services]
    for name in sorted({name for name in names if names.count(name) > 1}):
        what = "two services have this name: as one group they would take each other's events"
        found.append(_error("same-name", name, what, "give each a name of its own"))
    if settings.store and len(services) > 1:
        what = f"{', '.join(names)} would share one store"
        found.append(_warning("shared-store", masked(settings.store), what, "check each with its own --store"))
    topics: dict[str, dict[str, str]] = {}
    for service in services:
        for handler in service.handlers:
            if handler.event.kind == "integration":
                topics.setdefault(handler.event.type, {}).setdefault(handler.event.topic, service.name)
    for type_, by_topic in topics.items():
        if len(by_topic) > 1:
            what = " and ".join(f"on topic {topic} by {name}" for topic, name in by_topic.items())
            fix = "import the class from one place, or give both the same topic="
            found.append(_error("two-topics", type_, f"it is read {what}: each sees only its own", fix))
    return found


def _error(code: str, where: str, what: str, fix: str) -> Finding:
    return Finding(level="error", code=code, where=where, what=what, fix=fix)


def _warning(code: str, where: str, what: str, fix: str) -> Finding:
    return Finding(level="warning", code=code, where=where, what=what, fix=fix)
