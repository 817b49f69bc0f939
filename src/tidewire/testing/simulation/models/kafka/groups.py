"""The group coordinator: who has which partitions, by whose word, and which offsets are committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from tidewire.protocols import Clock
from tidewire.testing.simulation.models.links import Refusal

__all__ = ["Committed", "Coordinator", "Place"]

Place: TypeAlias = tuple[str, int]
"""A topic and the number of a partition."""
Committed: TypeAlias = tuple[int, str]
"""An offset and the text beside it."""


class _Member:
    def __init__(self, topics: Sequence[str], session: int) -> None:
        self.topics = tuple(topics)
        self.session = session
        self.epoch = self.before = 0
        self.deadline = 0
        self.held: dict[Place, None] = {}  # what it has, or was told to have
        self.target: frozenset[Place] = frozenset()


class _Group:
    def __init__(self) -> None:
        self.epoch = 0
        self.members: dict[str, _Member] = {}
        self.offsets: dict[Place, Committed] = {}


class Coordinator:
    """Groups by name. A partition goes to its new member when the old one has let go of it, or is out.

    Each member has an epoch, which grows with every assignment; a commit under another one is refused.
    """

    def __init__(self, clock: Clock, counts: Mapping[str, int], *, text_max: int) -> None:
        self.text_max = text_max
        self._clock = clock
        self._counts = counts  # partitions by topic
        self._groups: dict[str, _Group] = {}

    def _group(self, name: str) -> _Group:
        group = self._groups.setdefault(name, _Group())
        now = self._clock.ticks()
        gone = [name for name, member in group.members.items() if member.deadline < now]
        for member in gone:
            del group.members[member]
        if gone:
            self._rebalance(group)
        return group

    def join(self, name: str, member: str, topics: Sequence[str], *, session: int) -> None:
        """Let a member in; it is out when it was silent for *session* nanoseconds."""
        group = self._group(name)
        group.members.pop(member, None)
        new = group.members[member] = _Member(topics, session)
        new.deadline = self._clock.ticks() + session
        self._rebalance(group)

    def heartbeat(self, name: str, member: str, epoch: int, *, held: Sequence[Place]) -> tuple[int, list[Place]]:
        """Say what one has, and hear what one should have, and under which epoch.

        Raises:
            Refusal: ``UNKNOWN_MEMBER_ID`` or ``FENCED_MEMBER_EPOCH``; join again.
        """
        group = self._group(name)
        one = self._member(group, member)
        if epoch not in (one.epoch, one.before):
            raise Refusal("FENCED_MEMBER_EPOCH")
        one.deadline = self._clock.ticks() + one.session
        one.held = dict.fromkeys(held)
        kept = [place for place in held if place in one.target]
        if len(kept) == len(held):
            taken = {place for other in group.members.values() if other is not one for place in other.held}
            kept += [place for place in sorted(one.target) if place not in one.held and place not in taken]
            one.before, one.epoch = epoch, group.epoch
            one.held = dict.fromkeys(kept)
        return one.epoch, kept

    def leave(self, name: str, member: str) -> None:
        """Go, at once; whoever is out already is not missed."""
        group = self._group(name)
        if group.members.pop(member, None) is not None:
            self._rebalance(group)

    def commit(self, name: str, member: str, epoch: int, *, offsets: Mapping[Place, Committed]) -> None:
        """Store offsets. Nobody asks whose partitions they are, or whether they go back.

        Raises:
            Refusal: ``UNKNOWN_MEMBER_ID``, ``STALE_MEMBER_EPOCH`` or ``OFFSET_METADATA_TOO_LARGE``.
        """
        group = self._group(name)
        if self._member(group, member).epoch != epoch:
            raise Refusal("STALE_MEMBER_EPOCH")
        if any(len(text) > self.text_max for _, text in offsets.values()):
            raise Refusal("OFFSET_METADATA_TOO_LARGE")
        group.offsets.update(offsets)

    def alter(self, name: str, offsets: Mapping[Place, Committed]) -> None:
        """Store offsets of a group without members on these topics, as an administrator.

        Raises:
            Refusal: ``NON_EMPTY_GROUP``.
        """
        group = self._group(name)
        topics = {topic for topic, _ in offsets}
        if any(topics & set(member.topics) for member in group.members.values()):
            raise Refusal("NON_EMPTY_GROUP")
        group.offsets.update(offsets)

    def begin(self, name: str, offsets: Mapping[Place, Committed]) -> None:
        """Store offsets where the group has none, so that it begins there."""
        group = self._group(name)
        for place, committed in offsets.items():
            group.offsets.setdefault(place, committed)

    def committed(self, name: str, places: Sequence[Place]) -> list[Committed | None]:
        """Return what is committed."""
        group = self._group(name)
        return [group.offsets.get(place) for place in places]

    def owners(self, name: str) -> dict[Place, str]:
        """Return who has what."""
        group = self._group(name)
        return {place: who for who, member in group.members.items() for place in member.held}

    def fail_over(self) -> None:
        """Move to another broker: sessions begin anew."""
        for group in self._groups.values():
            for member in group.members.values():
                member.deadline = self._clock.ticks() + member.session

    def _member(self, group: _Group, name: str) -> _Member:
        if name not in group.members:
            raise Refusal("UNKNOWN_MEMBER_ID")
        return group.members[name]

    def _rebalance(self, group: _Group) -> None:
        """Share out every topic in ranges, so that equal partitions of topics of equal length go to one member.

        Members have their places in the order in which they came.
        """
        group.epoch += 1
        targets: dict[str, set[Place]] = {name: set() for name in group.members}
        for topic in sorted({topic for member in group.members.values() for topic in member.topics}):
            readers = [name for name, member in group.members.items() if topic in member.topics]
            count = self._counts.get(topic, 0)
            for number in range(count):
                targets[readers[number * len(readers) // count]].add((topic, number))
        for name, member in group.members.items():
            member.target = frozenset(targets[name])
