"""Names and their numbers, remembered; what is not known is looked up, for another process may have made it."""

from __future__ import annotations

from typing import NamedTuple

from tidewire.kit.sqllog.home import Home

__all__ = ["Names", "TopicRow"]

_SOURCES_MAX = 10_000


class TopicRow(NamedTuple):
    """A topic as the database has it."""

    id: int
    name: str
    lanes: int
    retention: int | None
    size_max: int | None


class Names:
    """What is known, for the event loop and the writer thread; a number once given is never another's."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._topics: dict[str, TopicRow] = {}
        self._subs: dict[tuple[str, str], int] = {}
        self.missing: set[tuple[str | None, str]] = set()
        self._sources: dict[str, int] = {}
        self._met: dict[str, int] = {}
        self.source_names: dict[int, str] = {}
        self.refusal = home.refusal

    def topic(self, name: str) -> TopicRow | None:
        """Return the topic, or None: not known, and noted as missing."""
        found = self._topics.get(name)
        if found is None:
            self.missing.add((None, name))
        return found

    def sub(self, group: str, topic: str) -> int | None:
        """Return the number of (group, topic), or None: not known, and noted as missing."""
        found = self._subs.get((group, topic))
        if found is None:
            self.missing.add((group, topic))
        return found

    async def look_up(self) -> None:
        """Look for what is missing."""
        missing = [*self.missing]
        self.missing.clear()
        for group, topic in missing:
            if group is None:
                await self.find_topic(topic)
            else:
                await self.find_sub(group, topic)

    async def find_topic(self, name: str) -> TopicRow | None:
        """Return the topic, or None: there is none."""
        if name not in self._topics:
            rows = await self._home.read(
                "SELECT id, name, lanes, retention, size_max FROM topic WHERE name = ?", (name,)
            )
            for row in rows:
                self._topics[name] = TopicRow(*row)
        return self._topics.get(name)

    async def find_sub(self, group: str, topic: str) -> int | None:
        """Return the number of (group, topic), or None: there is none."""
        if (group, topic) not in self._subs:
            rows = await self._home.read(
                "SELECT m.id FROM member_of m JOIN topic t ON t.id = m.topic WHERE m.grp = ? AND t.name = ?",
                (group, topic),
            )
            for row in rows:
                self._subs[group, topic] = int(row[0])
        return self._subs.get((group, topic))

    def source(self, name: str) -> int | None:
        """Return the number of a source, or None: not known. On the writer thread, inside a transaction."""
        number = self._sources.get(name)
        return self._met.get(name) if number is None else number

    def meet_source(self, name: str, number: int) -> None:
        """Remember a source for as long as the transaction lasts, which may have numbered it and be rolled back."""
        self._met[name] = number

    def begin(self) -> None:
        """A transaction begins, and whatever went before it is decided: forget what was met in vain."""
        self._met.clear()

    def stand(self) -> None:
        """The transaction stands: what was met in it is so for good."""
        if len(self._sources) > _SOURCES_MAX:
            self._sources.clear()
        self._sources.update(self._met)
        self._met.clear()

    async def find_sources(self, numbers: set[int]) -> None:
        """Make sure that the names of *numbers* are in `source_names`."""
        if numbers <= self.source_names.keys():
            return
        if len(self.source_names) > _SOURCES_MAX:
            self.source_names.clear()
        for number in numbers - self.source_names.keys():
            rows = await self._home.read("SELECT name FROM source WHERE id = ?", (number,))
            self.source_names[number] = str(rows[0][0])
