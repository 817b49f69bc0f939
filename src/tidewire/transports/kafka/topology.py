"""What is there: topics, and groups on them. Created where it is missing, read back, never changed, never deleted.

A group on a topic is its two channels. It begins when the log of its inbox channel is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta

from tidewire.errors import TransportRefused
from tidewire.model import Change, GroupSpec, TopicSpec
from tidewire.transports.kafka.asking import Asker, Place
from tidewire.transports.kafka.library import NewTopic
from tidewire.transports.kafka.names import dead_topic, inbox_topic
from tidewire.transports.kafka.progress import Progress, Saved

__all__ = ["Names", "kept_by_us", "provision_all", "retention_of"]

_MILLISECOND = timedelta(milliseconds=1)
_RETENTION = "max.compaction.lag.ms"
"""Means nothing where nothing is compacted: here it says how long what is settled stays. Kafka has no word for that."""
_FOR_EVER = 9223372036854775807
_KEPT = {"retention.ms": "-1", "retention.bytes": "-1"}
_FRAME = 65_536
"""Bytes that a key, our own headers and the batch around it may add to a message."""
_LOOKS = 400
_LOOK = 0.05


class Names:
    """The topics of the broker with their partitions, as last seen."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker
        self._seen: dict[str, int] = {}

    def partitions(self, log: str) -> int | None:
        """Return how many partitions *log* has, or None: it was not there when we looked."""
        return self._seen.get(log)

    def places(self, log: str) -> list[Place]:
        """Return the partitions of *log*."""
        return [(log, partition) for partition in range(self._seen.get(log, 0))]

    def all(self) -> Mapping[str, int]:
        """Return everything that was there when we looked."""
        return self._seen

    def forget(self, log: str) -> None:
        """The broker says that *log* is not there."""
        self._seen.pop(log, None)

    async def look(self) -> None:
        """Look again. What one broker does not name any more may be unknown to it yet: another look decides."""
        found = await self.asker.partitions()
        if not self._seen.keys() <= found.keys():
            await asyncio.sleep(_LOOK)
            found |= await self.asker.partitions()
        self._seen = found

    async def know(self, logs: Sequence[str]) -> None:
        """Look again if one of *logs* is not known."""
        if any(log not in self._seen for log in logs):
            await self.look()


def retention_of(config: Mapping[str, str]) -> timedelta | None:
    """Return for how long what is settled stays, by our setting or Kafka's own."""
    own, ours = int(config.get("retention.ms", "-1")), int(config.get(_RETENTION, str(_FOR_EVER)))
    kept = ours if own < 0 else own
    return None if kept < 0 or kept >= _FOR_EVER else kept * _MILLISECOND


def kept_by_us(config: Mapping[str, str]) -> timedelta | None:
    """Return the retention that we see to ourselves, or None: there is none, or Kafka sees to it."""
    return retention_of(config) if int(config.get("retention.ms", "-1")) < 0 else None


async def provision_all(
    names: Names, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool
) -> list[Change]:
    """See `tidewire.protocols.Transport.provision`."""
    await names.look()
    found = await _topics(names, topics, dry_run=dry_run)
    planned = {spec.name: spec.lanes for spec in topics} if dry_run else {}
    return found + [await _group(names, spec, planned, dry_run=dry_run) for spec in groups]


async def _topics(names: Names, specs: Sequence[TopicSpec], *, dry_run: bool) -> list[Change]:
    impossible = {spec.name: why for spec in specs if (why := _impossible(spec))}
    missing = [spec for spec in specs if names.partitions(spec.name) is None and spec.name not in impossible]
    refused: dict[str, str] = {}
    made: set[str] = set()
    if missing and not dry_run:
        for name, error in (await names.asker.create([_new_topic(names, spec) for spec in missing])).items():
            if error is None:
                made.add(name)
            elif error.message != "there":
                refused[name] = str(error)
        await _appear(names, [spec.name for spec in missing if spec.name not in refused])
    configs = await names.asker.configs([spec.name for spec in specs if names.partitions(spec.name) is not None])
    changes: list[Change] = []
    for spec in specs:
        what = f"topic {spec.name}"
        why = refused.get(spec.name, "" if spec.name in configs else impossible.get(spec.name, ""))
        if why:
            changes.append(Change("conflict", what, why))
        elif spec.name not in configs:
            changes.append(Change("create", what))
        elif drift := _drift(names, spec, configs[spec.name]):
            changes.append(Change("conflict", what, drift))
        else:
            changes.append(Change("create" if spec.name in made else "unchanged", what))
    return changes


def _impossible(spec: TopicSpec) -> str:
    if spec.lanes < 1:
        return "a topic needs at least one lane"
    return "Kafka has no size at which a publish is refused: leave the cap out" if spec.size_bytes_max else ""


def _new_topic(names: Names, spec: TopicSpec) -> NewTopic:
    config = {**_KEPT, "cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}
    if spec.retention is not None:
        config[_RETENTION] = str(max(1, spec.retention // _MILLISECOND))
    return _new(names, spec.name, spec.lanes, config)


def _new(names: Names, log: str, partitions: int, config: dict[str, str]) -> NewTopic:
    settings = names.asker.settings
    config["max.message.bytes"] = str(max(1_048_588, settings.message_bytes_max + _FRAME))
    if settings.replication >= 3:
        config["min.insync.replicas"] = "2"
    return NewTopic(log, partitions, settings.replication, config=config)


async def _appear(names: Names, logs: Sequence[str]) -> None:
    """Wait until every log can be seen.

    Raises:
        TransportRefused: one does not appear.
    """
    missing = list(logs)
    for _ in range(_LOOKS):
        await names.look()
        missing = [log for log in missing if names.partitions(log) is None]
        if not missing:
            return
        await asyncio.sleep(_LOOK)
    raise TransportRefused(f"{', '.join(missing)} cannot be seen after it was created")


def _drift(names: Names, spec: TopicSpec, config: Mapping[str, str]) -> str:
    """Return what is not as *spec* wants it."""
    differ: list[str] = []
    lanes = names.partitions(spec.name)
    if lanes != spec.lanes:
        differ.append(f"lanes is {lanes}, not {spec.lanes}")
    kept = retention_of(config)
    if kept != (None if spec.retention is None else max(_MILLISECOND, spec.retention)):
        differ.append(f"retention is {kept}, not {spec.retention}")
    if spec.size_bytes_max is not None:
        differ.append(f"size_bytes_max is None, not {spec.size_bytes_max}: Kafka refuses no publish for its size")
    if config.get("cleanup.policy", "delete") != "delete":
        differ.append(f"cleanup.policy is {config['cleanup.policy']}, which loses events of the same key")
    return "; ".join([*differ, *_too_narrow(names, spec.name, config)])


async def _group(names: Names, spec: GroupSpec, planned: Mapping[str, int], *, dry_run: bool) -> Change:
    what = f"group {spec.name}"
    lanes = {topic: names.partitions(topic) or planned.get(topic) for topic in spec.topics}
    if unknown := [topic for topic, count in lanes.items() if count is None]:
        return Change("conflict", what, f"there is no topic {', '.join(unknown)}")
    wanted = [one for topic in spec.topics for one in _channels(names, topic, spec.name, lanes=lanes[topic] or 1)]
    missing = [one for one in wanted if names.partitions(one.topic) is None]
    drift = await _unfit(names, [one for one in wanted if one not in missing])
    if drift or not missing:
        return Change("conflict" if drift else "unchanged", what, drift)
    if dry_run:
        return Change("create", what)
    result = await names.asker.create(missing)  # one request is one step of the controller: one client makes them all
    wrong = [str(error) for error in result.values() if error is not None and error.message != "there"]
    if wrong:
        return Change("conflict", what, wrong[0])
    await _appear(names, [one.topic for one in missing])
    made = {log for log, error in result.items() if error is None}
    if drift := await _unfit(names, [one for one in missing if one.topic not in made]):
        return Change("conflict", what, drift)
    await _begin(names, spec, [topic for topic in spec.topics if inbox_topic(topic, spec.name) in made])
    return Change("create" if made else "unchanged", what)


def _channels(names: Names, topic: str, group: str, *, lanes: int) -> list[NewTopic]:
    """Return the inbox channel and the dead channel of *group* on *topic*, as they are made."""
    stamped = {"message.timestamp.type": "LogAppendTime"}
    inbox = {**_KEPT, **stamped, "cleanup.policy": "delete"}
    dead = {**stamped, "cleanup.policy": "compact"}
    return [
        _new(names, inbox_topic(topic, group), lanes, inbox),
        _new(names, dead_topic(topic, group), 1, dead),
    ]


async def _unfit(names: Names, there: Sequence[NewTopic]) -> str:
    """Return what is wrong with channels that are there: they would lose messages, or not take them."""
    configs = await names.asker.configs([one.topic for one in there])
    return "; ".join(why for one in there for why in _wrong_with(names, one, configs[one.topic]))


def _wrong_with(names: Names, wanted: NewTopic, config: Mapping[str, str]) -> list[str]:
    log, differ = wanted.topic, list[str]()
    if (partitions := names.partitions(log)) != wanted.num_partitions:
        differ.append(f"{log} has {partitions} partitions, not {wanted.num_partitions}")
    policy = config.get("cleanup.policy", "delete")
    if "compact" in policy and (wanted.config or {}).get("cleanup.policy") != "compact":
        differ.append(f"{log} has cleanup.policy={policy}, which loses events of the same key")
    if "delete" in policy and (kept := [name for name in _KEPT if int(config.get(name, "-1")) >= 0]):
        differ.append(f"{log} has {kept[0]}={config[kept[0]]}, so Kafka removes what nobody has settled: set it to -1")
    return [*differ, *_too_narrow(names, log, config)]


def _too_narrow(names: Names, log: str, config: Mapping[str, str]) -> list[str]:
    """Say that *log* takes less than what is published in one request, so that small events would be refused too."""
    most = names.asker.settings.message_bytes_max
    room = int(config.get("max.message.bytes", str(most + _FRAME)))
    if room >= most + _FRAME:
        return []
    return [
        f"{log} takes {room} bytes at most (max.message.bytes), and message_bytes_max={most} in the URL needs "
        f"{most + _FRAME}: raise the one or lower the other"
    ]


async def _begin(names: Names, spec: GroupSpec, topics: Sequence[str]) -> None:
    """Write down where the group begins; where it has members already, they do so when they get the lanes."""
    places = [place for topic in topics for place in names.places(topic)]
    at = await (names.asker.ends if spec.start == "latest" else names.asker.begins)(places)
    inboxes = {place: 0 for topic in topics for place in names.places(inbox_topic(topic, spec.name))}
    entries = {place: Progress(low, Saved()).saved(0, open_=False, slack=0) for place, low in {**at, **inboxes}.items()}
    if entries:
        try:
            await names.asker.move(spec.name, entries)
        except TransportRefused as error:
            if "has members" not in error.message:
                raise
