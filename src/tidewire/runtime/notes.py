"""What is told of a consumer: facts for observers, handed over once per settled batch, and a log line per failure."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from tidewire.model import DeadLetter, Fact, FactKind, RetryLater
from tidewire.protocols import Clock, Observer
from tidewire.rules.letters import topic_of
from tidewire.rules.retry import raised_at
from tidewire.runtime.producer import published
from tidewire.runtime.work import Work

__all__ = ["Notes"]

_logger = logging.getLogger("tidewire.consumer")


class Notes:
    """Facts of one group on their way to the observer; without one, nothing is made."""

    def __init__(self, observer: Observer | None, clock: Clock, group: str) -> None:
        self._observer = observer
        self.wanted = observer is not None
        self._clock = clock
        self._group = group
        self._facts: list[Fact] = []

    def note(self, kind: FactKind, work: Work, *, seconds: float = 0.0, detail: str = "") -> None:
        """Note that *kind* happened to *work*."""
        if self._observer is None:
            return
        message = work.delivery.message
        type_ = message.headers.get("ce-type", "")
        now, took = self._clock.now_us(), int(seconds * 1e6)
        self._facts.append(Fact(kind, type_, message.id, topic_of(message.to), self._group, now, took, detail))

    def retried(self, work: Work, outcome: RetryLater) -> None:
        """Note and log that *work* failed and is tried again."""
        error = outcome.error
        self.note("retried", work, detail=type(error).__name__)
        self._hand_over()  # it may be long until something settles, and a failing key is what people look for
        fields = {"delay_s": outcome.delay.total_seconds(), "error_type": type(error).__name__}
        _logger.warning("tidewire.consumer.retry", extra=self._named(work) | fields | {"raised_at": raised_at(error)})

    def dead_lettered(self, work: Work, verdict: DeadLetter) -> None:
        """Note and log that the group gives up on *work*."""
        self.note("dead_lettered", work, detail=verdict.reason.value)
        fields = {"reason": verdict.reason.value}
        if verdict.error is not None:
            fields |= {"error_type": type(verdict.error).__name__, "raised_at": raised_at(verdict.error)}
        _logger.error("tidewire.consumer.dead_letter", extra=self._named(work) | fields)

    def _named(self, work: Work) -> dict[str, object]:
        message = work.delivery.message
        failures = 0 if work.failure is None else work.failure.failures
        return {
            "event_id": message.id,
            "event_type": message.headers.get("ce-type", ""),
            "topic": topic_of(message.to),
            "group": self._group,
            "attempt": max(work.delivery.attempt - 1 + failures, 1),
        }

    def settled(self, works: Iterable[Work]) -> None:
        """Note that *works* are settled, and what was published with them, and hand everything over."""
        if self._observer is None:
            return
        now = self._clock.now_us()
        for work in works:
            self._facts.extend(published(message, now) for message in work.outgoing)
            self.note("settled", work)
        self._hand_over()

    def _hand_over(self) -> None:
        facts, self._facts = self._facts, []
        if facts and self._observer is not None:
            self._observer.record(facts)
