"""What happened in a run, as one list of operations: written by simulations, by processes that are killed, by the demo.

An operation has a place to say what it did (*f*), and how sure one can be of it (*type*): ``invoke`` it began, ``ok``
it certainly happened, ``fail`` it certainly did not, ``info`` nobody knows: it may show up later, at most once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

__all__ = ["Audience", "F", "History", "Op", "Violation"]

F: TypeAlias = Literal[
    "publish", "attempt", "effect", "mark", "row", "adopt", "lane", "settle", "commit", "dead", "discard", "expire",
    "timer", "saga", "bound", "fact", "outbox", "stuck", "health", "heal", "drained", "crash",
]  # fmt: skip


class Op(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One operation. Which fields have a meaning depends on *f*:

    ``publish``: *event*, *of* (its type), *key*, *n* (its place in *stream*, -1: unordered), *digest*, *due*.
    ``attempt``: a handler's call: *group*, *handler*, *event*, *attempt*, *cycle* (redrives so far); ``info``: it was
    cancelled, *detail* ``cut off`` where that was not its own time-out. ``effect``: what a handler wrote and
    committed; *n* and *stream* as published, *number* its place among the commits of its store, *lane* and *epoch* by
    which it ran, *run*. ``mark``, ``row``: found in the store at the end. ``adopt``: *number*, *lane*, *epoch*.
    ``lane``: ``invoke`` assigned, ``ok`` given up, ``fail`` lost. ``settle``: ``ok`` settled, ``fail`` lost, *number*
    how many operations there were when it was asked for (0: it took no time); ``commit``: a position *n* of a *lane*
    under *epoch*. ``dead``: a dead letter at the end, *detail* its reason; ``info``: when it was written, ``fail``:
    for an outage.
    ``timer``: ``invoke`` set for *due*, ``ok`` it went off.
    ``saga``: ``invoke`` begun, *detail* its state. ``bound``: *n* of at most *due*. ``fact``: *detail* its kind, *n*
    how many; ``invoke`` as the history has it, ``ok`` as the observer heard it. ``outbox``: *n* pending at the end.
    ``stuck``: an event in an outbox's quarantine at the end, where a person finds it.
    ``health``: *detail* ``ready`` or ``not ready``, *n* microseconds for which the process had been deaf.
    ``heal``: faults ended, *due* is the longest the rest may take; ``drained``. ``crash``: a life ended.
    """

    f: F
    type: Literal["invoke", "ok", "fail", "info"] = "ok"
    at: int = 0
    process: str = ""
    event: str = ""
    of: str = ""
    key: str = ""
    n: int = -1
    stream: str = ""
    group: str = ""
    handler: str = ""
    attempt: int = 0
    cycle: int = 0
    number: int = 0
    lane: str = ""
    epoch: int = 0
    run: int = 0
    digest: str = ""
    due: int = 0
    detail: str = ""


class Audience(msgspec.Struct, frozen=True, kw_only=True):
    """Who must get events of one type: *handler* of *group*, and what that subscription promises.

    *once*: an effect happens once (it has a store). *ordered*: events of a key keep their order; *hold*: also over
    dead letters. *attempts_max*: failed calls before a dead letter.
    """

    of: str
    group: str
    handler: str
    once: bool = True
    ordered: bool = True
    hold: bool = True
    attempts_max: int = 0


class Violation(msgspec.Struct, frozen=True):
    """A promise that was broken: which check says so, and of what; *group* and *event* where it is about one event."""

    check: str
    what: str
    group: str = ""
    event: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.what}"


class History:
    """Operations in the order in which they happened, and who was to get what.

    Not ``complete``: the run was not drained, so what is still on its way is not lost.
    """

    def __init__(self, audience: Iterable[Audience] = (), ops: Iterable[Op] = (), *, complete: bool = True) -> None:
        self.audience = list(audience)
        self.ops = list(ops)
        self.complete = complete

    def add(self, op: Op) -> None:
        """Append *op*."""
        self.ops.append(op)

    def of(self, f: F, *types: str) -> Iterator[Op]:
        """Iterate over the operations *f*, of the given types where there are any."""
        for op in self.ops:
            if op.f == f and (not types or op.type in types):
                yield op

    def audiences(self) -> Mapping[str, Sequence[Audience]]:
        """Return who must get events of a type, by type."""
        found: dict[str, list[Audience]] = {}
        for one in self.audience:
            found.setdefault(one.of, []).append(one)
        return found

    def counts(self) -> dict[str, int]:
        """Return how many operations there are of each kind."""
        found: dict[str, int] = {}
        for op in self.ops:
            name = f"{op.f} {op.type}"
            found[name] = found.get(name, 0) + 1
        return found

    def encode(self) -> bytes:
        """Return the operations as JSON lines; equal histories have equal bytes."""
        encode = msgspec.json.Encoder().encode
        return b"\n".join(encode(op) for op in self.ops)

    @classmethod
    def decode(cls, lines: bytes, audience: Iterable[Audience] = ()) -> History:
        """Return the history in JSON *lines*; a half-written last line, as a kill leaves it, is dropped."""
        whole, _, rest = lines.rpartition(b"\n")
        decode = msgspec.json.Decoder(Op).decode
        ops = [decode(line) for line in whole.split(b"\n") if line.strip()]
        try:
            ops += [decode(rest)] if rest.strip() else []
        except msgspec.DecodeError:
            return cls(audience, ops)
        return cls(audience, ops)
