"""How one client publishes: posts with ids, several keys side by side, and one after another within a key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidewire.errors import TransportUnavailable
from tidewire.model import DeadChannel, InboxChannel, Message, Receipt, Topic
from tidewire.testing.simulation.models.channels import name_of
from tidewire.testing.simulation.models.common import Series, lane_of, series_of, size_of, unfit
from tidewire.testing.simulation.models.jetstream.lanes import wait_of
from tidewire.testing.simulation.models.jetstream.server import JetStreamServer, Post, PubAck
from tidewire.testing.simulation.models.jetstream.streams import Settings
from tidewire.testing.simulation.models.links import Disconnected, Link

__all__ = ["Publisher"]

_TRIES = 3
_SIDE_BY_SIDE = 8


class Publisher:
    """Publishes posts, and again without an answer: the server knows them by their ids, for a while.

    A message to a topic has the event's id; one to a channel, where an event comes more than once, an id of its own.
    Messages of one key wait for each other's acks, so that a refusal leaves no gap.
    """

    def __init__(self, server: JetStreamServer, link: Link) -> None:
        self._server = server
        self._link = link
        self._client = next(server.clients)
        self._made = 0
        self._turn = 0
        self.settings: Mapping[str, Settings] = {}

    async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        """Store *messages* and say what became of each.

        Raises:
            TransportUnavailable: nothing was sent.
        """
        receipts: dict[int, Receipt] = {}
        failed: set[Series] = set()
        unsent = 0
        rest = dict(enumerate(messages))
        while rest:
            batch: dict[int, Post] = {}
            for index in self._side_by_side(rest):
                message = rest.pop(index)
                verdict = await self._verdict(message, failed)
                if verdict is not None:
                    receipts[index] = verdict
                    _note_failure(message, failed)
                else:
                    batch[index] = self._post(message)
            if batch:
                outcomes, was_sent = await self.send(list(batch.values()))
                unsent += 0 if was_sent else len(batch)
                for index, outcome in zip(batch, outcomes, strict=True):
                    receipts[index] = _receipt(batch[index], outcome)
                    if not receipts[index].ok:
                        _note_failure(messages[index], failed)
        if messages and unsent == len(messages):
            raise TransportUnavailable("the server cannot be reached")
        return [receipts[index] for index in range(len(messages))]

    def _side_by_side(self, rest: Mapping[int, Message]) -> list[int]:
        """Return what may be sent at once: the first ones, until a key comes twice."""
        keys: set[Series] = set()
        found: list[int] = []
        for index, message in rest.items():
            series = series_of(message)
            if series in keys or len(found) == _SIDE_BY_SIDE:
                break
            if series is not None:
                keys.add(series)
            found.append(index)
        return found

    async def send(self, posts: Sequence[Post]) -> tuple[Sequence[PubAck | None], bool]:
        """Publish posts; None for those that nothing is known of. Also return whether anything was sent."""
        sent = False
        for _ in range(_TRIES):
            try:
                return await self._link.call(self._server.publish, posts), True
            except Disconnected as error:
                sent |= error.sent
        return [None] * len(posts), sent

    async def _verdict(self, message: Message, failed: set[Series]) -> Receipt | None:
        """Return why *message* is not sent, if so."""
        if (receipt := unfit(message, failed, self._server.message_bytes_max)) is not None:
            return receipt
        name = name_of(message.to)
        if name not in self.settings:
            self.settings = await self._link.call(self._server.describe)
        if name not in self.settings:
            return Receipt(message.id, "rejected", "unknown_topic", f"there is no {name}")
        return None

    def _post(self, message: Message) -> Post:
        name = name_of(message.to)
        match message.to:
            case Topic():
                subject = self._lane(message.key, self.settings[name].lanes)
                known = f"{message.source}\0{message.id}" if message.id else ""
                return Post(name, subject, message, known, size_of(message))
            case InboxChannel():
                subject = self._lane(message.key, self.settings[name].lanes)
                late = message.not_before is not None and message.not_before > self._server.clock.now_us()
                return Post(name, wait_of(subject) if late else subject, message, self.unique(), size_of(message))
            case DeadChannel():
                return Post(name, "0", message, self.unique(), size_of(message))

    def _lane(self, key: str | None, lanes: int) -> str:
        if key is not None:
            return str(lane_of(key, lanes))
        self._turn += 1
        return str(self._turn % lanes)

    def unique(self) -> str:
        """Return an id for one post."""
        self._made += 1
        return f"{self._client}-{self._made}"


def _note_failure(message: Message, failed: set[Series]) -> None:
    if (series := series_of(message)) is not None:
        failed.add(series)


def _receipt(post: Post, outcome: PubAck | None) -> Receipt:
    name = post.message.id
    if outcome is None:
        return Receipt(name, "unknown", detail="there was no answer")
    if outcome.status == "refused":
        return Receipt(name, "rejected", outcome.reason, f"{post.stream} refuses it")
    return Receipt(name, outcome.status)
