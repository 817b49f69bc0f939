"""The server of an AMQP-like broker: exchanges, queues, channels, confirms, and what it does to what is unacked.

Queues are replicated and durable unless they are exclusive. A channel that closes gives all it has back to the heads of
its queues, in order, and that raises the delivery count of each, whoever closed it and why.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from tidewire.errors import TransportUnavailable
from tidewire.model import Act, Message
from tidewire.protocols import Clock
from tidewire.testing.simulation.models.intake import Bell
from tidewire.testing.simulation.models.links import Refusal, Server

__all__ = ["AmqpServer", "Arguments", "Channel", "ChannelClosed", "Connection", "Copy", "Given", "Queue"]

Confirm = Literal["ack", "nack", "returned"]
HEARS_LATE = 0.01
"""Seconds by which each further queue of a channel hears later that it has closed."""


class ChannelClosed(TransportUnavailable):
    """What is asked for belongs to a channel or a connection that is no more."""


class Copy(msgspec.Struct, frozen=True):
    """What an adapter puts on a queue. *name* is unique; *spent*: attempts of earlier copies of the same; *more*: the
    delay goes on when this one has come."""

    name: str
    message: Message
    spent: int = 0
    more: bool = False


class Arguments(msgspec.Struct, frozen=True, kw_only=True):
    """How a queue was declared; to declare it otherwise is refused."""

    ttl: float | None = None
    dead_letters_to: str | None = None
    dead_letter_key: str | None = None
    single_active: bool = False
    delivery_limit: int | None = None
    bytes_max: int | None = None
    drops_all: bool = False
    exclusive: bool = False
    notes: str = ""


class Given(msgspec.Struct, frozen=True):
    """A message that was pushed to a channel, under a tag that means nothing elsewhere."""

    tag: int
    body: Any
    count: int
    stored_at: int


class _Stored:
    """A message in a queue. *count*: how often it was given back."""

    __slots__ = ("at", "body", "count", "expires", "key", "size")

    def __init__(self, body: Any, key: str, *, at: int, size: int) -> None:
        self.body = body
        self.key = key
        self.at = at
        self.size = size
        self.count = 0
        self.expires = 0.0


class Queue:
    """A queue. With *single_active* the consumer that came first has it until it goes."""

    __slots__ = ("arguments", "consumers", "name", "number", "owner", "ready", "timer", "unacked")

    def __init__(self, name: str, arguments: Arguments, *, number: int, owner: Connection | None) -> None:
        self.name = name
        self.arguments = arguments
        self.number = number
        self.owner = owner
        self.ready: deque[_Stored] = deque()
        self.unacked = 0
        self.consumers: list[tuple[Channel, Bell]] = []
        self.timer: asyncio.TimerHandle | None = None

    def serves(self, channel: Channel) -> bool:
        """Whether *channel* is given anything of this queue."""
        served = self.consumers[:1] if self.arguments.single_active else self.consumers
        return any(other is channel for other, _ in served)

    def tell(self) -> None:
        """Let those who are served know that there is something."""
        if self.ready:
            for _, bell in self.consumers[:1] if self.arguments.single_active else self.consumers:
                bell.ring()


class _Exchange:
    """Routes by patterns of words: ``*`` is one word, ``#`` any number."""

    def __init__(self, arguments: Mapping[str, object]) -> None:
        self.arguments = arguments
        self.bindings: list[tuple[tuple[str, ...], Queue | _Exchange]] = []
        self._routes: dict[str, list[Queue]] = {}

    def bind(self, pattern: str, target: Queue | _Exchange) -> None:
        binding = (tuple(pattern.split(".")), target)
        if binding not in self.bindings:
            self.bindings.append(binding)
            self._routes.clear()

    def route(self, key: str) -> list[Queue]:
        words = tuple(key.split("."))
        found: list[Queue] = []
        for pattern, target in self.bindings:
            if _matches(pattern, words):
                found += target.route(key) if isinstance(target, _Exchange) else [target]
        return found


class Connection:
    """One connection. It ends when the client closes it, or has not been heard of for *heartbeat* seconds."""

    def __init__(self, server: AmqpServer, heartbeat: float, bell: Bell, member: str) -> None:
        self.server = server
        self.heartbeat = heartbeat
        self.bell = self.control = bell
        self.member = member
        self.channels: list[Channel] = []
        self.open = True
        self._heard = self._now
        self._missed = False
        self._watch()

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def beat(self) -> None:
        """Say that the client is there."""
        self.demand_open()
        self._heard = self._now
        self._missed = False

    def _watch(self) -> None:
        """End it when nothing is heard; a loop that stood still hears first what has come meanwhile."""
        rest = self._heard + self.heartbeat - self._now
        if not self.open:
            return
        if rest <= 0 and self._missed:
            self.close()
            return
        self._missed = rest <= 0
        asyncio.get_running_loop().call_later(max(rest, HEARS_LATE), self._watch, context=contextvars.Context())

    def demand_open(self) -> None:
        """Raise `ChannelClosed` if it has ended."""
        if not self.open:
            raise ChannelClosed("the broker has closed the connection")

    def channel(self) -> Channel:
        """Open a channel."""
        self.demand_open()
        channel = Channel(self)
        self.channels.append(channel)
        return channel

    def publish(self, batch: Sequence[tuple[str, str, Copy]]) -> list[Confirm]:
        """Publish to (exchange, key), mandatory, and confirm each."""
        self.beat()
        return [self.server.publish(exchange, key, copy) for exchange, key, copy in batch]

    def close(self) -> None:
        """End it: channels close, exclusive queues go."""
        if self.open:
            self.open = False
            for channel in list(self.channels):
                channel.close()
            self.server.forget(self)
            self.bell.ring()
            self.control.ring()


class Channel:
    """A channel: consumers, and what was pushed and is not acked. Tags are its own."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.open = True
        self.unacked: dict[int, tuple[Queue, _Stored]] = {}
        self._queues: list[Queue] = []
        self._tags = 0

    def demand_open(self) -> None:
        """Raise `ChannelClosed` if it has ended."""
        if not self.open:
            raise ChannelClosed("the broker has closed the channel")

    def consume(self, name: str, *, exclusive: bool = False, bell: Bell | None = None) -> None:
        """Become a consumer of a queue; *bell* rings when there is something for it.

        Raises:
            TransportUnavailable: it, or the other one, wants to be the only one.
        """
        self.demand_open()
        queue = self.connection.server.queue(name)
        if exclusive and queue.consumers:
            raise TransportUnavailable(f"{name} is in use")
        if queue not in self._queues:
            queue.consumers.append((self, bell or self.connection.bell))
            self._queues.append(queue)
            queue.tell()

    def pull(self, name: str, credit: int) -> list[Given]:
        """Take what a queue pushes for so much credit; nothing while another consumer is the active one."""
        self.demand_open()
        queue = self.connection.server.queue(name)
        found: list[Given] = []
        if queue.serves(self):
            while queue.ready and len(found) < credit:
                stored = queue.ready.popleft()
                self._tags += 1
                self.unacked[self._tags] = (queue, stored)
                queue.unacked += 1
                found.append(Given(self._tags, stored.body, stored.count, stored.at))
        return found

    def ack(self, tags: Iterable[int]) -> None:
        """Ack; a tag that is not out is a protocol error, which ends the channel."""
        self.demand_open()
        self.connection.beat()
        for tag in tags:
            if tag not in self.unacked:
                self.close()
                raise ChannelClosed(f"unknown delivery tag {tag}")
            queue, stored = self.unacked.pop(tag)
            queue.unacked -= 1
            self.connection.server.acked(queue, stored)

    def nack(self, tag: int) -> None:
        """Give one back, to the head of its queue."""
        self.demand_open()
        queue, stored = self.unacked.pop(tag)
        self.connection.server.give_back(queue, [stored])

    def close(self) -> None:
        """End it. Its queues hear of that one after the other."""
        if not self.open:
            return
        self.open = False
        if self in self.connection.channels:
            self.connection.channels.remove(self)
        loop = asyncio.get_running_loop()
        for place, queue in enumerate(self._queues):
            loop.call_later(place * HEARS_LATE, self._gone, queue, context=contextvars.Context())

    def _gone(self, queue: Queue) -> None:
        mine = [tag for tag, (other, _) in self.unacked.items() if other is queue]
        self.connection.server.give_back(queue, [self.unacked.pop(tag)[1] for tag in mine])
        queue.consumers = [(other, bell) for other, bell in queue.consumers if other is not self]
        queue.tell()


class AmqpServer(Server):
    """The broker: what is declared on it, and what is stored."""

    def __init__(self, clock: Clock, *, message_bytes_max: int = 1 << 20) -> None:
        super().__init__(clock, message_bytes_max=message_bytes_max)
        self.queues: dict[str, Queue] = {}
        self.exchanges: dict[str, _Exchange] = {}
        self.connections: list[Connection] = []
        self.stream: list[Act] = []
        self.names = 0
        self._numbers = self._published = self._refuse_every = 0
        self._settled: deque[tuple[str, _Stored]] = deque(maxlen=64)

    def cramp(self) -> None:
        """Change the leader of a queue now and then: it refuses what is published just then."""
        self._refuse_every = 53

    # --- connections ------------------------------------------------------------------------------------------

    def connect(self, heartbeat: float, bell: Bell, member: str = "", instead: Connection | None = None) -> Connection:
        """Open a connection; *instead* of one whose other end has just been reset."""
        if instead is not None:
            instead.close()
        connection = Connection(self, heartbeat, bell, member)
        self.connections.append(connection)
        return connection

    def forget(self, connection: Connection) -> None:
        """What a connection had for itself goes with it."""
        self.connections.remove(connection)
        for queue in [queue for queue in self.queues.values() if queue.owner is connection]:
            self.delete(queue.name)

    def cut(self) -> None:
        """End every connection."""
        for connection in list(self.connections):
            connection.close()
        super().cut()

    # --- topology ---------------------------------------------------------------------------------------------

    def declare_exchange(self, name: str, arguments: Mapping[str, object]) -> bool:
        """Declare an exchange; False if it was there. Other arguments are refused."""
        there = self.exchanges.get(name)
        if there is None:
            self.exchanges[name] = _Exchange(arguments)
        elif there.arguments != arguments:
            raise Refusal("PRECONDITION_FAILED", f"{name} is {there.arguments}")
        return there is None

    def declare_queue(self, name: str, arguments: Arguments, owner: Connection | None = None) -> bool:
        """Declare a queue; False if it was there. Other arguments are refused."""
        there = self.queues.get(name)
        if there is not None:
            if there.owner is not owner:
                raise Refusal("RESOURCE_LOCKED", f"{name} belongs to another connection")
            if there.arguments != arguments:
                raise Refusal("PRECONDITION_FAILED", f"{name} is {there.arguments}")
            return False
        self._numbers += 1
        self.queues[name] = Queue(name, arguments, number=self._numbers, owner=owner)
        self._tell_of(name)
        return True

    def delete(self, name: str) -> None:
        """Delete a queue; nothing if it is not there."""
        if self.queues.pop(name, None) is not None:
            self._tell_of(name)

    def bind(self, exchange: str, pattern: str, target: str) -> None:
        """Bind a queue, or an exchange."""
        self.exchanges[exchange].bind(pattern, self.queues.get(target) or self.exchanges[target])

    def queue(self, name: str) -> Queue:
        """Return a queue.

        Raises:
            ChannelClosed: 404.
        """
        if name not in self.queues:
            raise ChannelClosed(f"NOT_FOUND: no queue {name}")
        return self.queues[name]

    def _tell_of(self, name: str) -> None:
        """The event exchange: exclusive queues are watched by those whose own has the same beginning."""
        place = name.rpartition("/")[0]
        for queue in self.queues.values():
            if queue.owner is not None and queue.name.rpartition("/")[0] == place:
                queue.owner.control.ring()

    # --- messages ---------------------------------------------------------------------------------------------

    def publish(self, exchange: str, key: str, copy: Copy) -> Confirm:
        """Route a message. A nack says that it is not in each of its queues; it may be in some."""
        if exchange:
            if exchange not in self.exchanges:
                raise ChannelClosed(f"NOT_FOUND: no exchange {exchange}")
            queues = self.exchanges[exchange].route(key)
        else:
            queues = [self.queues[key]] if key in self.queues else []
        if not queues:
            return "returned"
        self._published += 1
        refused = self._refuse_every > 0 and self._published % self._refuse_every == 0
        refused = refused or (self.refuse is not None and self.refuse(copy.message) is not None)
        size = len(copy.message.body) + 100
        kept = [queue for queue in queues if not queue.arguments.drops_all]
        done = [self._enqueue(queue, copy, key, size) for queue in (kept[:-1] if refused else kept)]
        return "nack" if refused or not all(done) else "ack"

    def put(self, name: str, body: object) -> None:
        """Store something of the adapter's own on a queue."""
        self._enqueue(self.queue(name), body, name, 0)

    def _enqueue(self, queue: Queue, body: object, key: str, size: int) -> bool:
        most = queue.arguments.bytes_max
        if most is not None and size + sum(stored.size for stored in queue.ready) > most:
            return False
        stored = _Stored(body, key, at=self.clock.now_us(), size=size)
        queue.ready.append(stored)
        if queue.arguments.ttl is not None:
            stored.expires = asyncio.get_running_loop().time() + queue.arguments.ttl
            self._expire(queue)
        queue.tell()
        return True

    def _expire(self, queue: Queue) -> None:
        """Dead-letter what has lived too long: only ever at the head."""
        loop = asyncio.get_running_loop()
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        while queue.ready and queue.ready[0].expires <= loop.time() + 1e-6:
            self._dead_letter(queue, queue.ready.popleft())
        if queue.ready:
            when = queue.ready[0].expires
            queue.timer = loop.call_at(when, self._expire, queue, context=contextvars.Context())

    def _dead_letter(self, queue: Queue, stored: _Stored) -> None:
        to = queue.arguments.dead_letters_to
        if to is None:
            return
        key = queue.arguments.dead_letter_key or stored.key
        for target in self.exchanges[to].route(key) if to else [self.queue(key)]:
            if not target.arguments.drops_all:
                self._enqueue(target, stored.body, key, stored.size)

    def give_back(self, queue: Queue, batch: Sequence[_Stored]) -> None:
        """Put what a channel had at the head of its queue, in order; past its limit a message is dead-lettered."""
        queue.unacked -= len(batch)
        limit = queue.arguments.delivery_limit
        for stored in reversed(batch):
            stored.count += 1
            if limit is not None and stored.count > limit:
                self._dead_letter(queue, stored)
            else:
                queue.ready.appendleft(stored)
        queue.tell()

    def acked(self, queue: Queue, stored: _Stored) -> None:
        """Remember for a while what was acked: an ack is not confirmed, and a new leader may not know of it."""
        if isinstance(stored.body, Copy) and queue.arguments.single_active:
            self._settled.append((queue.name, stored))

    def repeat(self, draw: float) -> bool:
        """Let a queue forget an ack: the message is there again, behind all others."""
        if not self._settled:
            return False
        name, stored = self._settled[int(draw * len(self._settled))]
        self._enqueue(self.queue(name), stored.body, stored.key, stored.size)
        return True

    # --- management -------------------------------------------------------------------------------------------

    def names_under(self, place: str) -> list[Queue]:
        """Return the queues whose names begin with *place* and a slash, in the order they were declared."""
        found = [queue for name, queue in self.queues.items() if name.startswith(place + "/")]
        return sorted(found, key=_by_number)


def _by_number(queue: Queue) -> int:
    return queue.number


def _matches(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    for place, word in enumerate(pattern):
        if word == "#":
            rest = pattern[place + 1 :]
            return any(_matches(rest, words[start:]) for start in range(place, len(words) + 1))
        if place >= len(words) or (word != "*" and word != words[place]):
            return False
    return len(pattern) == len(words)
