"""Topics and groups as a service needs them: created where that is allowed, verified where it is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tidewire.errors import ConfigurationError
from tidewire.kit.looks import topics_there
from tidewire.model import GroupSpec, TopicSpec
from tidewire.protocols import Transport
from tidewire.rules.topology import wanted_topics

__all__ = ["Topology"]


class Topology:
    """What this process knows of the broker's topics; asks once per name."""

    def __init__(self, transport: Transport, *, create: bool, lanes: int) -> None:
        self._transport = transport
        self._create = create
        self._lanes = lanes
        self._known: set[str] = set()

    async def ensure(self, topics: Iterable[str]) -> None:
        """Create those of *topics* that are missing, where that is allowed; else the broker refuses what it lacks."""
        missing = [name for name in dict.fromkeys(topics) if name not in self._known]
        if missing and self._create:
            await self._transport.provision([TopicSpec(name, lanes=self._lanes) for name in missing], ())
        self._known.update(missing)

    async def prepare(self, group: str, topics: Sequence[str]) -> None:
        """Create or verify *topics* and the *group* on them.

        Raises:
            ConfigurationError: something exists with other settings, or does not exist and may not be created.
        """
        there = await topics_there(self._transport, topics)
        specs = wanted_topics(topics, lanes=self._lanes, there=there)
        changes = await self._transport.provision(specs, [GroupSpec(group, topics)], dry_run=not self._create)
        wrong = [f"{change.what}: {change.detail}" for change in changes if change.kind == "conflict"]
        if not self._create:
            wrong += [f"{change.what} does not exist" for change in changes if change.kind == "create"]
        if wrong:
            raise ConfigurationError(
                f"{group}: the broker is not as this service needs it: {'; '.join(wrong)}",
                hint="--provision creates what is missing; the number of lanes is changed by a migration only",
            )
        self._known.update(topics)
