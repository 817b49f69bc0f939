"""Which delivery runs next: one per key, in order; suspects alone; nothing of a lane we no longer own.

A data structure without time, tasks or I/O: the consumer acts on it, property tests drive it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

from tidewire.model import Delivery

__all__ = ["Key", "Keyed", "Schedule", "State"]

Key: TypeAlias = Hashable
State: TypeAlias = Literal["new", "waiting", "ready", "running", "held", "concluded", "freed", "withdrawn"]


class Keyed(Protocol):
    """What `Schedule` needs of a piece of work; it alone writes *state* and *gone*.

    *key* names lane and key, or is None where nothing is ordered. *alone*: it runs while nothing else does.
    *gone*: its lane was lost after it had started; it must not settle.
    """

    delivery: Delivery
    key: Key | None
    alone: bool
    gone: bool
    state: State


W = TypeVar("W", bound=Keyed)


class Schedule(Generic[W]):
    """The deliveries of one membership, from `add` to `settled`.

    Each is *waiting* behind another of its key, *ready*, *running* (taken), *held* (it failed and waits, its key
    with it) or *concluded* (it ran; to be settled). A key stays taken from `add` of its first to `free` of its
    last; `free` makes the next one ready.
    """

    def __init__(self) -> None:
        self._ready: deque[W] = deque()
        self._alone: deque[W] = deque()
        self._taken: dict[Key, deque[W] | None] = {}
        self._outstanding: dict[int, W] = {}
        self._held: dict[int, W] = {}
        self._exclusive: W | None = None
        self.running = 0

    @property
    def outstanding(self) -> int:
        """How many are not settled."""
        return len(self._outstanding)

    @property
    def held(self) -> list[W]:
        """Those that failed and wait, longest first."""
        return list(self._held.values())

    @property
    def has_ready(self) -> bool:
        """Whether `take` would return something."""
        if self._exclusive is not None:
            return False
        return not self.running if self._alone else bool(self._ready)

    def add(self, work: W) -> None:
        """Take in a new delivery, behind those of its key."""
        self._outstanding[id(work)] = work
        key = work.key
        if key is not None:
            if key in self._taken:
                queue = self._taken[key]
                if queue is None:
                    queue = self._taken[key] = deque()
                work.state = "waiting"
                queue.append(work)
                return
            self._taken[key] = None
        self._offer(work)

    def take(self) -> W | None:
        """Return the next to run, or None. From the taking of one that must be alone until it is freed: None."""
        if self._exclusive is not None:
            return None
        if self._alone:
            if self.running:
                return None
            work = self._exclusive = self._alone.popleft()
        elif self._ready:
            work = self._ready.popleft()
        else:
            return None
        work.state = "running"
        self.running += 1
        return work

    def take_like(self, accept: Callable[[W], bool], limit: int) -> list[W]:
        """Take up to *limit* more that are ready and that *accept* says yes to, beside one that is taken already."""
        taken: list[W] = []
        if self._exclusive is not None or limit < 1:
            return taken
        rest: deque[W] = deque()
        for work in self._ready:
            if len(taken) < limit and accept(work):
                work.state = "running"
                taken.append(work)
            else:
                rest.append(work)
        self._ready = rest
        self.running += len(taken)
        return taken

    def conclude(self, work: W) -> None:
        """It ran; its key is still taken. Once is enough."""
        if work.state == "running":
            self.running -= 1
        work.state = "concluded"

    def hold(self, work: W) -> None:
        """It ran and waits for another try; its key waits with it, others go on."""
        self.conclude(work)
        work.state = "held"
        self._held[id(work)] = work
        self._end_exclusive(work)

    def resume(self, work: W) -> bool:
        """Make a held one ready, first of all. False if it is no longer held."""
        if self._held.pop(id(work), None) is None:
            return False
        self._offer(work, first=True)
        return True

    def lift(self, work: W) -> bool:
        """Take a held one out, concluded, to be moved; its key is still taken. False if it is no longer held."""
        if self._held.pop(id(work), None) is None:
            return False
        work.state = "concluded"
        return True

    def back(self, work: W) -> None:
        """Make one that has concluded without a verdict ready again, first of all; its key is still taken."""
        self._end_exclusive(work)
        self._offer(work, first=True)

    def free(self, work: W) -> None:
        """Its effect is certain, or it is no longer ours: the next one of its key may start. Once is enough.

        What never was here (an event nobody asked for) holds no key, so it frees none.
        """
        if work.state in ("new", "freed", "withdrawn"):
            return
        work.state = "freed"
        self._end_exclusive(work)
        key = work.key
        if key is None:
            return
        queue = self._taken.pop(key, None)
        if queue:
            self._taken[key] = queue
            self._offer(queue.popleft())

    def settled(self, works: Iterable[W]) -> None:
        """The broker knows: they are no longer outstanding, and hold no key any more."""
        outstanding = self._outstanding
        for work in works:
            if work.state != "freed":
                self.free(work)
            outstanding.pop(id(work), None)

    def withdraw(self, lane: str | None = None) -> list[W]:
        """Take out what has not started, of *lane* or (None) of all, held ones included; return it in order."""
        leaving = [work for work in self.of(lane) if work.state in ("waiting", "ready", "held")]
        for work in leaving:
            if work.state != "waiting" and work.key is not None:
                del self._taken[work.key]
            work.state = "withdrawn"
            del self._outstanding[id(work)]
            self._held.pop(id(work), None)
        self._ready = deque(work for work in self._ready if work.state == "ready")
        self._alone = deque(work for work in self._alone if work.state == "ready")
        for key, queue in self._taken.items():
            if queue is not None:
                self._taken[key] = deque(work for work in queue if work.state == "waiting") or None
        return leaving

    def abandon(self, lane: str) -> None:
        """*lane* is lost: forget what has not started and mark the rest ``gone``."""
        self.withdraw(lane)
        for work in self.of(lane):
            work.gone = True

    def of(self, lane: str | None) -> list[W]:
        """Return what is outstanding of *lane*, or (None) of all, in the order it came."""
        return [work for work in self._outstanding.values() if lane is None or work.delivery.lane == lane]

    def _offer(self, work: W, *, first: bool = False) -> None:
        work.state = "ready"
        queue = self._alone if work.alone else self._ready
        if first:
            queue.appendleft(work)
        else:
            queue.append(work)

    def _end_exclusive(self, work: W) -> None:
        if self._exclusive is work:
            self._exclusive = None
