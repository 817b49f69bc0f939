"""Section I: the whole at once, against a model that anybody can check by reading."""

# ruff: noqa: S311  (seeded chance)

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tidewire.errors import AlreadyMarked, LaneFenced
from tidewire.model import Guard
from tidewire.testing.stores.bench import Bench, ids, mark_of, message, outcome

KEYS = ["a", "b", "c", None]


@dataclass(slots=True)
class _Model:
    """What a store ought to hold."""

    rows: list[str] = field(default_factory=list[str])
    pending: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    stuck: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    epoch: int = 1

    def free(self) -> list[str]:
        """Return what may leave: nothing behind a quarantined event of its key; names count up."""
        first: dict[str, int] = {}
        for name, key in self.stuck:
            if key is not None:
                first[key] = min(_number(name), first.get(key, _number(name)))
        return [name for name, key in self.pending if key is None or _number(name) < first.get(key, 1 << 30)]


def _number(name: str) -> int:
    return int(name[1:])


async def test_stateful_model(bench: Bench) -> None:
    """CF-123 for stores: units, conflicts, fences, refusals and takeovers in any order give what the model says."""
    chance, model = random.Random(321), _Model()
    await bench.store.lanes.adopt("g", "t/0", model.epoch)
    for number in range(150):
        match chance.choice(["commit", "commit", "commit", "again", "rollback", "stale", "done", "refuse", "adopt"]):
            case "commit" | "again" | "rollback" | "stale" as kind:
                await _unit(bench, model, kind=kind, name=f"n{number}", chance=chance)
            case "done":
                await _send(bench, model, chance)
            case "refuse":
                await _refuse(bench, model, chance)
            case _:
                model.epoch += 1
                await bench.store.lanes.adopt("g", "t/0", model.epoch)
        assert (len(model.pending) + len(model.stuck)) == sum(await bench.store.outbox.count()), f"after step {number}"
    assert sorted(model.rows) == sorted(await bench.site.rows.names(bench.store))
    known = await bench.store.inbox.known([mark_of(name) for name in model.rows])
    assert [b"digest"] * len(model.rows) == list(known)
    assert model.free() == ids(await bench.pending())


async def _unit(bench: Bench, model: _Model, *, kind: str, name: str, chance: random.Random) -> None:
    again = chance.choice(model.rows) if kind == "again" and model.rows else name
    key = chance.choice(KEYS)
    unit = bench.store.unit(Guard("g", "t/0", model.epoch - (kind == "stale")))
    writing = bench.fill(unit, message(name, key), mark=mark_of(again), row=name)
    if isinstance(await outcome(writing, AlreadyMarked), AlreadyMarked):
        assert again in model.rows
        await unit.rollback()
        return
    if kind == "rollback":
        await unit.rollback()
        return
    sealed = await outcome(unit.seal(), AlreadyMarked, LaneFenced)
    ended = sealed if isinstance(sealed, Exception) else await outcome(sealed, AlreadyMarked, LaneFenced)
    assert (kind == "stale") == isinstance(ended, LaneFenced)
    assert (again in model.rows) == isinstance(ended, AlreadyMarked)
    if ended is None:
        model.rows.append(name)
        model.pending.append((name, key))


async def _send(bench: Bench, model: _Model, chance: random.Random) -> None:
    rows = await bench.pending()
    assert model.free() == ids(rows)
    sent = chance.sample(rows, min(len(rows), 3))
    assert await bench.store.backlog.done("relay", [row.row for row in sent])
    gone = set(ids(sent))
    model.pending = [(name, key) for name, key in model.pending if name not in gone]


async def _refuse(bench: Bench, model: _Model, chance: random.Random) -> None:
    rows = await bench.pending()
    if not rows or chance.random() < 0.5:
        return
    row = chance.choice(rows)
    assert await bench.store.backlog.refused("relay", row.row, detail="no", attempts_max=1)
    model.pending.remove((row.message.id, row.message.key))
    model.stuck.append((row.message.id, row.message.key))
