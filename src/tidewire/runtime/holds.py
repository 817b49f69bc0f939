"""Keys that wait behind an event that failed for good, or for longer than a process should hold it.

The rows are in the store (`HeldKeys`); here is only which keys have any. A key's oldest row is its head: only the
head runs, everything else of the key follows it, to the dead channel or to the inbox channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from tidewire.model import DeadLetter, Held, InboxChannel, Message, Reason
from tidewire.protocols import Store
from tidewire.rules.letters import EDITED_FROM, retried, topic_of
from tidewire.runtime.work import Work

__all__ = ["Holds"]


class Holds:
    """The held keys of one group; *shared*: any member may be given any key at any time."""

    def __init__(self, store: Store | None, group: str, topics: Sequence[str], *, shared: bool = False) -> None:
        self._store = store
        self._group = group
        self._topics = topics
        self._shared = shared
        self.keys: set[tuple[str, str]] = set()
        self._noted: set[tuple[str, str]] = set()

    async def load(self) -> None:
        """Learn which keys are held; done whenever a lane is taken, because its last owner may have added some.

        What is noted here while the store answers may be missing from its answer.
        """
        if self._store is not None:
            self._noted.clear()
            found = await self._store.held.keys(self._group, self._topics)
            self.keys = self._noted.union(found)

    async def refresh(self, works: Sequence[Work]) -> None:
        """Learn, where no lane was taken, what another member has noted before it let go what has just come.

        Where lanes belong to members that is so for what comes back through the inbox channel, whose lane is ours:
        a foreign producer may have chosen another one for the key.
        """
        if self._store is None:
            return
        back = [
            (to.topic, one.delivery.message.key) for one in works if type(to := one.delivery.message.to) is InboxChannel
        ]
        if self._shared or any(key is not None and (topic, key) not in self.keys for topic, key in back):
            await self.load()

    async def follow(self, work: Work, *, soonest: int) -> DeadLetter | Message | None:
        """Return where *work* must follow its key's head to, or None: it may run.

        Its row is written before this returns, so that the key stays held whatever happens next. It comes back when
        its head is due; if that is late, not before *soonest*, or it would come and go until then.
        """
        message = work.delivery.message
        held = (topic_of(message.to), message.key or "")
        if self._store is None or work.key is None or held not in self.keys:
            return None
        head = await self._store.held.head(self._group, *held)
        if head is None:
            self.keys.discard(held)
            return None
        # An edited copy takes the place of the letter it was made from.
        if head.source == message.source and head.event_id in (message.id, message.headers.get(EDITED_FROM)):
            work.held_row = head.event_id
            return None
        if not work.todo and work.verdict is None:
            return None  # it took effect before the hold: nothing of it is to wait
        await self.note(work, head.state, head.due)
        if head.state == "dead":
            return DeadLetter(Reason.HELD, f"waits behind {head.event_id} of the same key, a dead letter")
        due = max(head.due or 0, soonest)
        return retried(work.original, group=self._group, failure=work.failure, not_before=due)

    def holds(self, work: Work) -> bool:
        """Whether the key of *work* is held, as far as is known here."""
        message = work.delivery.message
        return work.key is not None and (topic_of(message.to), message.key or "") in self.keys

    async def note(self, work: Work, state: Literal["inbox", "dead"], due: int | None) -> None:
        """Write, durably, that *work* waits in *state*; from now on its key is held."""
        assert self._store is not None
        await self._store.held.put([self._row(work, state, due)])
        held = (topic_of(work.delivery.message.to), work.delivery.message.key or "")
        self.keys.add(held)
        self._noted.add(held)

    async def free(self, work: Work) -> None:
        """Remove the row of *work*: it was handled."""
        assert self._store is not None
        row = self._row(work, "inbox", None)
        await self._store.held.free([msgspec.structs.replace(row, event_id=work.held_row)])
        work.held_row = ""

    def _row(self, work: Work, state: Literal["inbox", "dead"], due: int | None) -> Held:
        message = work.delivery.message
        return Held(self._group, topic_of(message.to), message.key or "", message.source, message.id, state, due)
