"""What can go wrong in a simulation, how often, and whether it does so now."""

from __future__ import annotations

import random

import msgspec

from tidewire.testing.simulation.loop import Interleaving

__all__ = ["Faults", "Weather"]


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """Which faults there are, and how often. 0 is never; *…_every* is in virtual seconds, *crash_every* in points.

    *crash_every*: about so many points lie between two deaths. *crash_at*: at this point the process dies.
    *pause_every*, *cut_every*, *clock_every*, *slow_every*: how often some process stands still, is cut off from the
    broker, has its wall clock moved, or limps. *pause_max*: the longest of these. *outage_every*: the broker is away
    for all. *refused*: the share of broker calls that fail before anything is handed over; *lost_reply*: that succeed
    and do not say so. *store_down*: the share of store calls that fail. *duplicate*: the share of messages that the
    broker hands out twice. *latency*: the mean wait of a call that waits at all. *stop_every*: a graceful stop.
    *restart_max*: what died is started again within so many seconds. *deaf*: the share of memberships to which the
    broker hands out nothing, as if it had forgotten them. *full*: the share of commits to
    files that find no room on the disk. *power*: the share of deaths that are power
    losses: every process dies at once, and what was not synced is lost.
    """

    crash_every: float = 0.0
    crash_at: int = 0
    pause_every: float = 0.0
    pause_max: float = 60.0
    cut_every: float = 0.0
    clock_every: float = 0.0
    clock_max: float = 3600.0
    slow_every: float = 0.0
    outage_every: float = 0.0
    stop_every: float = 0.0
    refused: float = 0.0
    lost_reply: float = 0.0
    store_down: float = 0.0
    duplicate: float = 0.0
    latency: float = 0.01
    restart_max: float = 8.0
    deaf: float = 0.0
    full: float = 0.0
    power: float = 0.0
    interleaving: Interleaving = "shuffled"

    @property
    def any(self) -> bool:
        """Whether anything can go wrong at all."""
        quiet = Faults(
            latency=self.latency,
            interleaving=self.interleaving,
            pause_max=self.pause_max,
            clock_max=self.clock_max,
            restart_max=self.restart_max,
        )
        return self != quiet

    def paced(self, pace: float) -> Faults:
        """Return the same faults, which come *pace* times as often and last as much shorter."""
        return msgspec.structs.replace(
            self,
            crash_every=self.crash_every / pace,
            pause_every=self.pause_every / pace,
            pause_max=self.pause_max / pace,
            cut_every=self.cut_every / pace,
            clock_every=self.clock_every / pace,
            clock_max=self.clock_max / pace,
            slow_every=self.slow_every / pace,
            outage_every=self.outage_every / pace,
            stop_every=self.stop_every / pace,
            restart_max=self.restart_max / pace,
        )

    @classmethod
    def drawn(cls, chance: random.Random) -> Faults:
        """Draw which faults are on and how often they come: a quarter of all seeds has none."""
        draw = chance.random
        latency = chance.choice([0.0, 0.001, 0.01, 0.1])
        interleaving = chance.choice(_INTERLEAVINGS)
        if draw() < 0.25:
            return cls(latency=latency, interleaving=interleaving)

        def sometimes(share: float, *choices: float) -> float:
            value = chance.choice(choices)
            return value if draw() < share else 0.0

        return cls(
            crash_every=sometimes(0.6, 400.0, 1_500.0, 5_000.0),
            pause_every=sometimes(0.4, 10.0, 40.0),
            pause_max=chance.choice([1.0, 20.0, 90.0]),
            cut_every=sometimes(0.3, 10.0, 40.0),
            clock_every=sometimes(0.3, 10.0, 40.0),
            clock_max=chance.choice([1.0, 60.0, 600.0, 3_600.0]),
            slow_every=sometimes(0.2, 10.0, 30.0),
            outage_every=sometimes(0.2, 20.0, 60.0),
            stop_every=sometimes(0.3, 10.0, 30.0),
            refused=sometimes(0.3, 0.005, 0.03),
            lost_reply=sometimes(0.3, 0.005, 0.03),
            store_down=sometimes(0.3, 0.002, 0.02),
            duplicate=sometimes(0.3, 0.02, 0.2),
            latency=latency,
            interleaving=interleaving,
        )


_INTERLEAVINGS: tuple[Interleaving, ...] = ("shuffled", "shuffled", "favoured", "ordered")


class Weather:
    """The faults of one simulation while they last. After `clear` nothing goes wrong any more."""

    def __init__(self, faults: Faults, chance: random.Random) -> None:
        self.faults = faults
        self.latency = faults.latency
        self.chance = chance
        self.broker_away = False
        self.cut_off: set[str] = set()
        self.on = faults.any
        self.counts: dict[str, int] = {}

    def clear(self) -> None:
        """End all faults."""
        self.on = False
        self.broker_away = False
        self.cut_off.clear()

    def strikes(self, kind: str, share: float) -> bool:
        """Whether a fault of this kind happens now; it is counted."""
        if not self.on or share <= 0.0 or self.chance.random() >= share:
            return False
        self.note(kind)
        return True

    def note(self, kind: str) -> None:
        """Count a fault."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
