"""What lies between a simulated process and its broker: every call is a point at which things can go wrong.

Before and after a call there is a wait, so that the process can die on either side of it. What happened is noted in
the history as the broker knows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from tidewire.errors import TransportUnavailable
from tidewire.model import (
    Act,
    Address,
    Browsed,
    Capabilities,
    Change,
    DeadChannel,
    Delivery,
    Found,
    GroupInfo,
    GroupSpec,
    LaneEvent,
    Message,
    Move,
    Receipt,
    Release,
    Settlement,
    Stats,
    Subscription,
    TopicInfo,
    TopicSpec,
)
from tidewire.protocols import Lagging, Receiver
from tidewire.testing.simulation.checkers import History, Op
from tidewire.testing.simulation.loop import Process, SimLoop
from tidewire.testing.simulation.weather import Weather

__all__ = ["SimTransport", "Wire"]


class Wire:
    """The line of one process to the outside: its points, its faults, and what goes into the history."""

    def __init__(self, process: Process, weather: Weather, history: History) -> None:
        self.process = process
        self.loop: SimLoop = process.loop
        self.weather = weather
        self.history = history
        self.receivers: list[SimReceiver] = []
        self.settled = 0
        self.named: Callable[[Message], str] = _by_id
        process.on_kill.append(self._silence)
        process.on_pause.append(self._pause)

    async def point(self) -> None:
        """Wait a moment: a place to die."""
        await asyncio.sleep(self.loop.latency(self.weather.latency))

    async def to_broker(self) -> None:
        """Reach the broker, or not.

        Raises:
            TransportUnavailable: it is away, we are cut off, or this call was not lucky; nothing was handed over.
        """
        await self.point()
        weather = self.weather
        if weather.broker_away or self.process.name in weather.cut_off:
            raise TransportUnavailable("the broker cannot be reached (simulated)")
        if weather.strikes("refused", weather.faults.refused):
            raise TransportUnavailable("the connection broke (simulated)")

    def note(self, op: Op) -> None:
        """Add *op* to the history, with the time and the process."""
        self.history.add(op)

    @property
    def at(self) -> int:
        """The virtual time in microseconds."""
        return round(self.loop.now * 1e6)

    def cut(self, off: bool) -> None:
        """Be cut off from the broker, or have it back: the broker sees a silent member."""
        for receiver in self.receivers:
            receiver.hush(off)

    def _silence(self) -> None:
        for receiver in self.receivers:
            receiver.hush(True)

    def _pause(self, paused: bool) -> None:
        if self.process.name not in self.weather.cut_off:
            for receiver in self.receivers:
                receiver.hush(paused)


class SimTransport:
    """A transport as a simulated process has it."""

    def __init__(self, inner: Any, wire: Wire) -> None:
        self._inner = inner
        self._wire = wire
        if isinstance(inner, Lagging):
            self.lag = self._lag

    @property
    def capabilities(self) -> Capabilities:
        """Those of the transport inside."""
        found: Capabilities = self._inner.capabilities
        return found

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Create what is missing."""
        await self._wire.to_broker()
        changes: Sequence[Change] = await self._inner.provision(topics, groups, dry_run=dry_run)
        await self._wire.point()
        return changes

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Store *messages*; now and then the answer is lost, and all that can be said is ``unknown``."""
        wire = self._wire
        await wire.to_broker()
        receipts: Sequence[Receipt] = await self._inner.publish(messages)
        if wire.weather.strikes("lost reply", wire.weather.faults.lost_reply):
            receipts = [
                Receipt(message.id, "unknown", detail="the answer was lost (simulated)") for message in messages
            ]
        await wire.point()
        return receipts

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[Receiver]:
        """Join the group."""
        wire = self._wire
        await wire.to_broker()
        receiver: SimReceiver | None = None
        try:
            async with self._inner.subscribe(subscription) as inner:
                receiver = SimReceiver(inner, wire, subscription)
                receiver.fenced = self.capabilities.fencing
                wire.receivers.append(receiver)
                try:
                    yield receiver
                finally:
                    receiver.leaving = True
        finally:  # while it leaves, it is a member still
            if receiver is not None:
                wire.receivers.remove(receiver)

    # --- operators --------------------------------------------------------------------------------------------

    async def topics(self) -> Sequence[TopicInfo]:
        """Return every topic."""
        await self._wire.to_broker()
        found: Sequence[TopicInfo] = await self._inner.topics()
        return found

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Return every group."""
        await self._wire.to_broker()
        found: Sequence[GroupInfo] = await self._inner.groups(topic)
        return found

    async def stats(self, topic: str, group: str) -> Stats:
        """Return the counts of (topic, group)."""
        await self._wire.to_broker()
        found: Stats = await self._inner.stats(topic, group)
        return found

    async def _lag(self, group: str, lanes: Sequence[str]) -> int:
        await self._wire.to_broker()
        waiting: int = await self._inner.lag(group, lanes)
        return waiting

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Return messages without consuming them."""
        await self._wire.to_broker()
        found: Sequence[Browsed] = await self._inner.browse(address, after=after, limit=limit)
        return found

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """Move an inactive group's cursor."""
        await self._wire.to_broker()
        await self._inner.seek(topic, group, to=to)
        await self._wire.point()

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Remove dead letters."""
        await self._wire.to_broker()
        count: int = await self._inner.remove(channel, positions)
        await self._wire.point()
        return count

    async def find(self, event_id: str, *, limit: int = 100) -> Sequence[Found]:
        """Return every place where a message lies."""
        await self._wire.to_broker()
        found: Sequence[Found] = await self._inner.find(event_id, limit=limit)
        return found

    async def related(self, correlation_id: str, *, limit: int = 1_000) -> Sequence[Found]:
        """Return what belongs together."""
        await self._wire.to_broker()
        found: Sequence[Found] = await self._inner.related(correlation_id, limit=limit)
        return found

    async def note(self, act: Act) -> None:
        """Keep an act."""
        await self._wire.to_broker()
        await self._inner.note(act)
        await self._wire.point()

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Return acts."""
        await self._wire.to_broker()
        found: Sequence[tuple[int, Act]] = await self._inner.acts(after=after, limit=limit)
        return found


class SimReceiver:
    """A receiver as a simulated process has it. *silence* and *wake* of the one inside are used where it has them."""

    def __init__(self, inner: Any, wire: Wire, subscription: Subscription) -> None:
        self._inner = inner
        self._wire = wire
        self._subscription = subscription
        self._out: dict[tuple[str, int, str, object], None] = {}
        self._hushed = False
        self._deaf = wire.weather.strikes("deaf", wire.weather.faults.deaf)
        self.fenced = True  # else an epoch is a member's own affair, and says nothing about others
        self.leaving = False

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Receive. Nothing is awaited once the broker has handed something out: cancelling loses nothing."""
        wire = self._wire
        await wire.to_broker()
        items: Sequence[Delivery | LaneEvent] = await self._inner.receive(0 if self._deaf else limit, wait)
        if wire.weather.broker_away or wire.process.name in wire.weather.cut_off:
            self._give_up(items)
        for item in items:
            if isinstance(item, LaneEvent):
                self._lane(item)
            else:
                self._out[_name(item)] = None
        prefetch = self._subscription.prefetch
        if len(self._out) > prefetch:
            wire.note(
                Op(f="bound", at=wire.at, process=wire.process.name, n=len(self._out), due=prefetch, detail="unsettled")
            )
        return items

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle; now and then the answer is lost.

        Raises:
            TransportUnavailable: the broker was not reached, or did not answer.
        """
        wire = self._wire
        await wire.to_broker()
        # Given out of hand: once the broker has written it down, it hands out more, maybe before we hear of it.
        for delivery in (*ack, *(one.delivery for one in release)):
            self._out.pop(_name(delivery), None)
        asked = len(wire.history.ops)
        settlements: Sequence[Settlement] = await self._inner.settle(ack=ack, release=release, move=move)
        for place, one in enumerate(settlements):
            if one.status == "failed":
                continue
            if place >= len(ack) + len(release):  # what was released may be out again by now
                self._out.pop(_name(one.delivery), None)
            self._settled(one, asked)
        given_back = range(len(ack), len(ack) + len(release))
        wire.settled += sum(
            one.status == "settled" and place not in given_back for place, one in enumerate(settlements)
        )
        for moved in move:
            self._given_up(moved)
        if wire.weather.strikes("lost reply", wire.weather.faults.lost_reply):
            raise TransportUnavailable("the answer was lost (simulated)")
        await wire.point()
        return settlements

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Steer lanes."""
        wire = self._wire
        await wire.to_broker()
        await self._inner.steer(pause=pause, resume=resume, drained=drained)
        for lane in drained:
            self._forget(lane)

    def hush(self, silent: bool) -> None:
        """Let the broker see a member that says nothing, or one that is back."""
        if self._hushed == silent:
            return
        self._hushed = silent
        act = getattr(self._inner, "silence" if silent else "wake", None)
        if act is not None:
            act()

    def _give_up(self, items: Sequence[Delivery | LaneEvent]) -> None:
        """The line broke while the answer was on its way; what is on it comes again after the lease."""
        self._wire.weather.note("lost receive")
        if items:
            self.hush(True)
        raise TransportUnavailable("the connection broke (simulated)")

    def _lane(self, event: LaneEvent) -> None:
        kinds = {"assigned": "invoke", "lost": "fail", "revoking": "info"}
        wire = self._wire
        kind: Any = kinds[event.kind]
        op = Op(
            f="lane",
            type=kind,
            at=wire.at,
            process=self._subscription.member,
            group=self._subscription.group,
            lane=event.lane,
            epoch=event.epoch,
        )
        if self.fenced:
            wire.note(op)
        if event.kind == "lost":
            self._forget(event.lane)

    def _forget(self, lane: str) -> None:
        for name in [name for name in self._out if name[0] == lane]:
            del self._out[name]

    def _given_up(self, moved: Move) -> None:
        """Note a dead letter when it is written; whether it is one at the end is seen at the end."""
        wire = self._wire
        for message in moved.messages:
            if isinstance(message.to, DeadChannel):
                last = message.headers.get("dl-last-error", "").partition(":")[0]
                outage = last in _OUTAGES
                op = Op(
                    f="dead",
                    type="fail" if outage else "info",
                    at=wire.at,
                    group=message.to.group,
                    event=wire.named(message),
                    detail=last if outage else message.headers.get("dl-reason", ""),
                )
                wire.note(op)

    def _settled(self, one: Settlement, asked: int) -> None:
        wire, delivery = self._wire, one.delivery
        wire.note(
            Op(
                f="settle",
                type="ok" if one.status == "settled" else "fail",
                at=wire.at,
                process=self._subscription.member,
                group=self._subscription.group,
                event=delivery.message.id,
                lane=delivery.lane,
                epoch=delivery.epoch if self.fenced else 0,
                number=asked,
            )
        )


_OUTAGES = frozenset({"StoreUnavailable", "TransportUnavailable", "TransactionLost"})


def _by_id(message: Message) -> str:
    return message.id


def _name(delivery: Delivery) -> tuple[str, int, str, object]:
    return delivery.lane, delivery.epoch, type(delivery.message.to).__name__, delivery.position
