"""Topics and groups: created once, read back, never changed and never deleted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from tidewire.kit.sqllog.home import Connection
from tidewire.kit.sqllog.shared import Shared
from tidewire.model import Change, GroupSpec, TopicSpec

__all__ = ["differences", "provision_all"]


async def provision_all(
    shared: Shared, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool
) -> list[Change]:
    """Return one change per topic and per group; write only what is missing, and only without *dry_run*."""

    def compare(connection: Connection) -> list[Change]:
        return differences(connection, topics, groups)

    def create(connection: Connection) -> list[Change]:
        changes = compare(connection)
        if all(change.kind != "create" for change in changes):
            return changes
        for topic in topics:
            connection.execute(
                "INSERT INTO topic (name, lanes, retention, size_max) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (topic.name, topic.lanes, _us(topic.retention), topic.size_bytes_max),
            )
        for group in groups:
            for name in group.topics:
                _join(connection, group, name)
        return changes

    return await (shared.home.beside(compare) if dry_run else shared.writer.submit(create))


def _join(connection: Connection, group: GroupSpec, name: str) -> None:
    """Put a group on a topic, with a cursor for every lane at its start."""
    topic = connection.execute("SELECT id, lanes FROM topic WHERE name = ?", (name,)).fetchone()
    if topic is None:
        return
    made = connection.execute(
        "INSERT INTO member_of (grp, topic) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id", (group.name, topic[0])
    ).fetchone()
    if made is None:
        return
    start = 0
    if group.start == "latest":
        start = connection.execute("SELECT coalesce(max(seq), 0) FROM log WHERE topic = ?", (topic[0],)).fetchone()[0]
    connection.executemany(
        "INSERT INTO cursor (sub, lane, pos, epoch, owner, boot, until, prefetch) VALUES (?, ?, ?, 0, '', '', 0, 0)",
        [(made[0], lane, start) for lane in range(topic[1])],
    )


def differences(connection: Connection, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> list[Change]:
    """Return what creating *topics* and *groups* would change, one line for each."""
    coming = {topic.name for topic in topics}
    return [_topic(connection, topic) for topic in topics] + [_group(connection, group, coming) for group in groups]


def _topic(connection: Connection, topic: TopicSpec) -> Change:
    what = f"topic {topic.name}"
    if topic.lanes < 1:
        return Change("conflict", what, "a topic has at least one lane")
    row = connection.execute("SELECT lanes, retention, size_max FROM topic WHERE name = ?", (topic.name,)).fetchone()
    if row is None:
        return Change("create", what, f"{topic.lanes} lanes")
    wanted = (topic.lanes, _us(topic.retention), topic.size_bytes_max)
    differ = [
        f"{name} is {have}, not {want}"
        for name, have, want in zip(("lanes", "retention", "size_bytes_max"), row, wanted, strict=True)
        if have != want
    ]
    return Change("conflict", what, "; ".join(differ)) if differ else Change("unchanged", what)


def _group(connection: Connection, group: GroupSpec, coming: set[str]) -> Change:
    what = f"group {group.name}"
    missing: list[str] = []
    for name in group.topics:
        known = connection.execute("SELECT 1 FROM topic WHERE name = ?", (name,)).fetchone()
        if known is None and name not in coming:
            return Change("conflict", what, f"there is no topic {name!r}")
        found = connection.execute(
            "SELECT 1 FROM member_of m JOIN topic t ON t.id = m.topic WHERE m.grp = ? AND t.name = ?",
            (group.name, name),
        ).fetchone()
        if found is None:
            missing.append(name)
    return Change("create", what, f"on {', '.join(missing)}") if missing else Change("unchanged", what)


def _us(duration: timedelta | None) -> int | None:
    return None if duration is None else duration // timedelta(microseconds=1)
