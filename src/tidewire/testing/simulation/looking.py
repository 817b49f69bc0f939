"""After a world has ended: what is in its stores and dead channels goes into the history, since that is what counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidewire.model import DeadChannel, Message
from tidewire.operations.letters import scan
from tidewire.testing.simulation.checkers import History, Op, Violation
from tidewire.testing.simulation.engine import Simulation
from tidewire.testing.simulation.grounds import Ground
from tidewire.testing.simulation.shop import Effect, Shop
from tidewire.testing.simulation.worlds import GROUPS, World

__all__ = ["Aftermath", "dead_channels", "named", "uid_of"]


class Aftermath:
    """One world when it is over."""

    def __init__(self, world: World, shop: Shop, ground: Ground, *, history: History) -> None:
        self.world = world
        self.shop = shop
        self.ground = ground
        self.history = history
        self.violations: list[Violation] = []

    def note_facts(self, simulation: Simulation) -> None:
        """Compare what observers heard with what the broker knows, where no answer was lost on the way."""
        faults = self.world.faults
        if faults.lost_reply or faults.refused or faults.cut_every or faults.outage_every or faults.pause_every:
            return
        for life in simulation.all_lives:
            if life.process.alive and life.app is not None and not faults.slow_every and not faults.store_down:
                name = f"{life.process.name}#{life.process.number}"
                common: dict[str, Any] = {"process": name, "detail": "settled", "at": self.shop.at}
                self.history.add(Op(f="fact", type="invoke", n=life.wire.settled, **common))
                self.history.add(Op(f="fact", n=life.facts.get("settled", 0), **common))

    async def look(self, simulation: Simulation) -> list[Violation]:
        """Read the stores and the dead channels: what is there is what counts."""
        history, ground = self.history, self.ground
        self.violations += [Violation("process", trouble) for trouble in simulation.troubles]
        # What is held knows its failures in memory: who loses a lane forgets them, as who dies does.
        hidden = sum(simulation.weather.counts.values()) + sum(1 for _ in history.of("lane", "fail"))
        if hidden:
            history.add(Op(f="crash", type="info", n=hidden * self.world.tuning.attempts))
        for name in ("web", *GROUPS):
            if name != "mailer" or self.world.tuning.mailer_store:
                await self._look_at(name)
        for effect in self.shop.loose:
            self._effect("mailer", effect)
        inspector = ground.inspector
        for channel in await dead_channels(inspector):
            async for letter in scan(inspector, channel):
                cycle = letter.headers.get("tw-redriven", "0")
                op = Op(
                    f="dead", at=self.shop.at, group=channel.group, event=uid_of(letter.message),
                    detail=letter.reason, cycle=int(cycle),
                )  # fmt: skip
                history.add(op)
        return self.violations

    async def _look_at(self, name: str) -> None:
        rows = sorted(await self.ground.rows(name), key=lambda row: row.number)
        uids: dict[str, str] = {}
        ticks: list[int] = []
        for row in rows:
            uids[row.event_id] = row.uid
            if row.handler == "order":
                self.history.add(Op(f="row", event=row.uid, of="sim.order.placed", stream=row.stream))
                self._known(row.uid, "sim.order.placed", key=row.key, n=row.n, stream=row.stream)
            elif row.handler == "tally":
                ticks.append(int(row.uid))
                self.history.add(Op(f="timer", at=int(row.uid), group=name, event=f"tally {row.uid}"))
            elif row.handler == "book":
                self.history.add(Op(f="timer", at=self.shop.at, group=name, event=f"book {row.uid}"))
            else:
                self._effect(name, row)
        charged = {row.uid for row in rows if row.handler == "charge"}
        booked = {row.uid for row in rows if row.handler == "book"}
        self.violations += [
            Violation("C6", f"domain event of {uid}: one without the other") for uid in charged ^ booked
        ]
        await self._look_at_marks(name, uids)
        self.history.add(Op(f="outbox", group=name, n=(await self.ground.outbox(name))[0]))
        for body, detail in await self.ground.stuck(name):
            self.history.add(Op(f="stuck", group=name, event=named(body, "a row nobody can read"), detail=detail))

    async def _look_at_marks(self, name: str, uids: dict[str, str]) -> None:
        for mark in await self.ground.marks(name):
            op = Op(
                f="mark", group=mark.group, handler=mark.handler, run=mark.run,
                event=uids.get(mark.event_id, mark.event_id),
            )  # fmt: skip
            self.history.add(op)

    def _effect(self, group: str, row: Effect) -> None:
        self.history.add(
            Op(
                f="effect", at=row.at, process=row.process, event=row.uid, key=row.key, n=row.n, stream=row.stream,
                group=group, handler=row.handler, cycle=row.cycle, number=row.number, lane=row.lane, epoch=row.epoch,
                digest=row.digest,
            )
        )  # fmt: skip
        if row.handler == "remind" and self.world.tuning.mailer_store:
            self.history.add(Op(f="timer", at=row.at, group=group, event=row.uid))
        for index, (uid, of) in enumerate(row.emits):
            n = row.number * (4 if group == "shipping" else 1) + index
            self._known(uid, of, key=row.key, n=n)
            self.history.add(Op(f="row", event=uid, of=of))
            if of == "sim.reminder.due" and self.world.tuning.mailer_store:
                self._reminder(uid, row)

    def _known(self, uid: str, of: str, *, key: str, n: int, stream: str = "") -> None:
        self.history.add(Op(f="publish", at=self.shop.at, event=uid, of=of, key=key, n=n, stream=stream))

    def _reminder(self, uid: str, row: Effect) -> None:
        due = row.at + round(self.world.tuning.reminder * 1e6) - 1_000 if not self.world.faults.clock_every else 0
        self.history.add(Op(f="timer", type="invoke", at=row.at, group="mailer", event=uid, due=due))


async def dead_channels(inspector: Any) -> Sequence[DeadChannel]:
    """Return the dead channels that hold something."""
    return [DeadChannel(info.topic, info.group) for info in await inspector.groups() if info.stats.dead]


def uid_of(message: Message) -> str:
    """Return the scenario's own identity of a message; its id where the body cannot be read."""
    return named(message.body, message.id)


def named(body: bytes, otherwise: str) -> str:
    """Return the identity that is written in *body*, or *otherwise*."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return otherwise
    return str(found.get("uid", otherwise))
