"""A client of the broker in a process of its own, which can be killed and paused like any other.

The suite talks to it in lines of JSON. The process opens its transport by calling a function named
``module:function``. Whatever goes wrong there ends it, with a traceback on standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pkgutil
import select
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from tidewire.model import (
    Address,
    DeadChannel,
    Delivery,
    InboxChannel,
    LaneEvent,
    Message,
    Move,
    Receipt,
    Release,
    Settlement,
    Subscription,
    Topic,
)
from tidewire.protocols import Receiver, Transport

__all__ = ["Client", "forward", "serve", "spawn_client", "wait_until_stopped"]


class Client(Receiver, Protocol):
    """Another life at the same broker: publishes, joins one group, and may die or stand still at any time."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Publish as `Transport.publish` does."""
        ...

    async def join(self, subscription: Subscription) -> None:
        """Join a group; from now on `receive`, `settle` and `steer` work."""
        ...

    async def start_publishing(self, messages: Sequence[Message]) -> None:
        """Publish one by one, and return before anything is known about it."""
        ...

    async def start_forwarding(self, subscription: Subscription, to: Address) -> None:
        """Join, and move each delivery to *to* until killed; return before anything has happened."""
        ...

    async def kill(self) -> None:
        """Die without a word, as by SIGKILL."""
        ...

    def pause(self) -> None:
        """Stand still, as by SIGSTOP."""
        ...

    def resume(self) -> None:
        """Go on, as by SIGCONT."""
        ...


class WireMessage(msgspec.Struct):
    """A message in JSON: *kind* says which address it is."""

    kind: str
    topic: str
    group: str
    id: str
    source: str
    key: str | None
    headers: dict[str, str]
    body: bytes
    not_before: int | None


class WireDelivery(msgspec.Struct):
    """A delivery in JSON."""

    message: WireMessage
    lane: str
    epoch: int
    position: int | str
    attempt: int
    suspect: bool
    stored_at: int | None


class Wire(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line, in either direction; *verb* says which fields matter."""

    verb: str
    messages: list[WireMessage] = []
    receipts: list[Receipt] = []
    subscription: Subscription | None = None
    limit: int = 0
    wait: float = 0.0
    deliveries: list[WireDelivery] = []
    events: list[LaneEvent] = []
    ack: list[WireDelivery] = []
    release: list[tuple[WireDelivery, float, bool]] = []
    move: list[tuple[WireDelivery, list[WireMessage]]] = []
    statuses: list[tuple[Literal["settled", "lost", "failed"], list[Receipt]]] = []
    lanes: dict[str, list[str]] = {}


LINE_BYTES_MAX = 1 << 24
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from tidewire.testing.transports.clients import serve; serve(sys.argv[2], sys.argv[3:])"
)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Wire).decode


def _wire(message: Message) -> WireMessage:
    to = message.to
    kind, topic, group = (
        ("topic", to.name, "") if isinstance(to, Topic) else (type(to).__name__.lower(), to.topic, to.group)
    )
    headers = dict(message.headers)
    return WireMessage(
        kind, topic, group, message.id, message.source, message.key, headers, message.body, message.not_before
    )


def _message(wire: WireMessage) -> Message:
    to: Address
    match wire.kind:
        case "topic":
            to = Topic(wire.topic)
        case "inboxchannel":
            to = InboxChannel(wire.topic, wire.group)
        case _:
            to = DeadChannel(wire.topic, wire.group)
    return Message(to, wire.id, wire.source, wire.key, wire.headers, wire.body, wire.not_before)


def _wire_delivery(one: Delivery) -> WireDelivery:
    message = _wire(one.message)
    return WireDelivery(message, one.lane, one.epoch, one.position, one.attempt, one.suspect, one.stored_at)


def _delivery(wire: WireDelivery) -> Delivery:
    message = _message(wire.message)
    return Delivery(message, wire.lane, wire.epoch, wire.position, wire.attempt, wire.suspect, stored_at=wire.stored_at)


# --- the suite's side -----------------------------------------------------------------------------------------


class ProcessClient:
    """A `Client` in a process of its own. Made by `spawn_client`."""

    def __init__(self, process: asyncio.subprocess.Process, harmless: Callable[[], bool] | None = None) -> None:
        self._process = process
        self._harmless = harmless

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Publish there, and return its receipts."""
        return (await self._ask(Wire(verb="publish", messages=[_wire(one) for one in messages]))).receipts

    async def join(self, subscription: Subscription) -> None:
        """Join there."""
        await self._ask(Wire(verb="join", subscription=subscription))

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Receive there. Not cancel-safe: the answer would be taken for the next one's."""
        answer = await self._ask(Wire(verb="receive", limit=limit, wait=wait.total_seconds()))
        return [*answer.events, *(_delivery(one) for one in answer.deliveries)]

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle there."""
        question = Wire(
            verb="settle",
            ack=[_wire_delivery(one) for one in ack],
            release=[(_wire_delivery(one.delivery), one.delay.total_seconds(), one.counted) for one in release],
            move=[(_wire_delivery(one.delivery), [_wire(message) for message in one.messages]) for one in move],
        )
        answer = await self._ask(question)
        settled = [*ack, *(one.delivery for one in release), *(one.delivery for one in move)]
        return [
            Settlement(delivery, status, receipts)
            for delivery, (status, receipts) in zip(settled, answer.statuses, strict=True)
        ]

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Steer there."""
        lanes = {"pause": list(pause), "resume": list(resume), "drained": list(drained)}
        await self._ask(Wire(verb="steer", lanes=lanes))

    async def start_publishing(self, messages: Sequence[Message]) -> None:
        """Let it publish one by one; it takes no further orders."""
        self._say(Wire(verb="start_publishing", messages=[_wire(one) for one in messages]))

    async def start_forwarding(self, subscription: Subscription, to: Address) -> None:
        """Let it forward until it is killed; it takes no further orders."""
        goal = _wire(Message(to, "", "", None, {}, b""))
        self._say(Wire(verb="start_forwarding", subscription=subscription, messages=[goal]))

    async def kill(self) -> None:
        """Send SIGKILL and wait until the process is gone."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it may end by itself at this moment
                self._process.kill()
        await self._process.wait()

    def pause(self) -> None:
        """Send SIGSTOP, and where it hit the client with something in hand that all need, again a little later."""
        for _ in range(200):
            self._process.send_signal(signal.SIGSTOP)
            wait_until_stopped(self._process.pid)
            if self._harmless is None or self._harmless():
                return
            self.resume()
            select.select([], [], [], 0.003)

    def resume(self) -> None:
        """Send SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def _say(self, wire: Wire) -> None:
        assert self._process.stdin is not None, "opened with pipes"
        self._process.stdin.write(_encode(wire) + b"\n")

    async def _ask(self, wire: Wire) -> Wire:
        self._say(wire)
        return await self.answer()

    async def answer(self) -> Wire:
        """Return the next line the process says."""
        assert self._process.stdout is not None, "opened with pipes"
        line = await self._process.stdout.readline()
        assert line, "the client's process has ended; its standard error says why"
        return _decode(line)


def wait_until_stopped(process: int) -> None:
    """Wait until every thread of a process that was sent SIGSTOP stands still; at once where there is no ``/proc``.

    A thread that runs on another processor goes on for a moment, and may take a lock in it.
    """
    tasks = Path(f"/proc/{process}/task")
    for _ in range(1_000):
        try:
            states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()]
        except OSError:  # no such folder here, or a thread has ended meanwhile
            states = ["?"] if tasks.exists() else []
        if all(state in "TtZX" for state in states):
            return
        select.select([], [], [], 0.001)


@asynccontextmanager
async def spawn_client(
    opener: str, *arguments: str, harmless: Callable[[], bool] | None = None
) -> AsyncGenerator[ProcessClient]:
    """Start a client process whose transport ``module:function`` opens with *arguments*; leaving kills it.

    *harmless* says whether the client, just stopped, holds nothing that stops everybody (a lock of an embedded
    broker): the cases that pause clients are about leases, not about that.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _PROGRAM, _encode(sys.path).decode(), opener, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
    )
    client = ProcessClient(process, harmless)
    try:
        await client.answer()  # "ready"
        yield client
    finally:
        await client.kill()
        assert process.stdin is not None, "opened with pipes"
        process.stdin.close()


# --- the process's side ---------------------------------------------------------------------------------------


async def forward(transport: Transport, subscription: Subscription, to: Address) -> None:
    """Move every delivery of a group to *to*, until cancelled or killed."""
    async with transport.subscribe(subscription) as receiver:
        while True:
            found = await receiver.receive(5, timedelta(seconds=1))
            deliveries = [one for one in found if isinstance(one, Delivery)]
            await receiver.settle(
                move=[Move(one, [msgspec.structs.replace(one.message, to=to, not_before=None)]) for one in deliveries]
            )


class _Server:
    def __init__(self, transport: Transport, stack: AsyncExitStack) -> None:
        self._transport = transport
        self._stack = stack
        self._receiver: Receiver | None = None

    async def answer(self, wire: Wire) -> Wire:
        match wire.verb:
            case "publish":
                receipts = await self._transport.publish([_message(one) for one in wire.messages])
                return Wire(verb="ok", receipts=list(receipts))
            case "join" if wire.subscription is not None:
                self._receiver = await self._stack.enter_async_context(self._transport.subscribe(wire.subscription))
                return Wire(verb="ok")
            case "start_publishing":
                for one in wire.messages:
                    await self._transport.publish([_message(one)])
                return Wire(verb="ok")
            case "start_forwarding" if wire.subscription is not None:
                await forward(self._transport, wire.subscription, _message(wire.messages[0]).to)
                return Wire(verb="ok")
            case _:
                assert self._receiver is not None, "join first"
                return await self._at(self._receiver, wire)

    async def _at(self, receiver: Receiver, wire: Wire) -> Wire:
        if wire.verb == "receive":
            found = await receiver.receive(wire.limit, timedelta(seconds=wire.wait))
            return Wire(
                verb="ok",
                events=[one for one in found if isinstance(one, LaneEvent)],
                deliveries=[_wire_delivery(one) for one in found if isinstance(one, Delivery)],
            )
        if wire.verb == "settle":
            settlements = await receiver.settle(
                ack=[_delivery(one) for one in wire.ack],
                release=[Release(_delivery(one), timedelta(seconds=delay), yes) for one, delay, yes in wire.release],
                move=[Move(_delivery(one), [_message(message) for message in many]) for one, many in wire.move],
            )
            return Wire(verb="ok", statuses=[(one.status, list(one.receipts)) for one in settlements])
        assert wire.verb == "steer", f"unknown verb {wire.verb}"
        await receiver.steer(**wire.lanes)
        return Wire(verb="ok")


async def _serve(opener: str, arguments: Sequence[str]) -> None:
    opened: AbstractAsyncContextManager[Transport] = pkgutil.resolve_name(opener)(*arguments)
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with AsyncExitStack() as stack:
        server = _Server(await stack.enter_async_context(opened), stack)
        answer = Wire(verb="ready")
        while True:
            os.write(1, _encode(answer) + b"\n")
            line = await lines.readline()
            if not line:
                return
            answer = await server.answer(_decode(line))


def serve(opener: str, arguments: Sequence[str]) -> None:
    """Be the client: answer lines until standard input ends."""
    asyncio.run(_serve(opener, arguments))
