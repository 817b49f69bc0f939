"""What observers hear of a consumer: facts, gathered on the hot path and handed over once per settled batch."""

from __future__ import annotations

from collections.abc import Iterable

from tidewire.model import Fact
from tidewire.protocols import Clock, Observer
from tidewire.rules.letters import topic_of
from tidewire.runtime.producer import published
from tidewire.runtime.work import Work

__all__ = ["Notes"]


class Notes:
    """Facts of one group on their way to the observer; without one, nothing is made."""

    def __init__(self, observer: Observer | None, clock: Clock, group: str) -> None:
        self._observer = observer
        self._clock = clock
        self._group = group
        self._facts: list[Fact] = []

    def note(self, kind: str, work: Work, *, seconds: float = 0.0, detail: str = "") -> None:
        """Note that *kind* happened to *work*."""
        if self._observer is None:
            return
        message = work.delivery.message
        type_ = message.headers.get("ce-type", "")
        now, took = self._clock.now_us(), int(seconds * 1e6)
        self._facts.append(Fact(kind, type_, message.id, topic_of(message.to), self._group, now, took, detail))

    def settled(self, works: Iterable[Work]) -> None:
        """Note that *works* are settled, and what was published with them, and hand everything over."""
        if self._observer is None:
            return
        now = self._clock.now_us()
        for work in works:
            self._facts.extend(published(message, now) for message in work.outgoing)
            self.note("settled", work)
        facts, self._facts = self._facts, []
        if facts:
            self._observer.record(facts)
