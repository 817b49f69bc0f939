"""How the members of a group know of each other.

Each has an exclusive queue, which ends with its connection. It says hello to all, keeps asking the next one in the ring
whether it is there, and passes on whom it knows; a question that is returned says that its queue is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

__all__ = ["Circle", "Count", "Word", "heard"]

_GONE_MAX = 10_000


class Count(msgspec.Struct, frozen=True):
    """What a member has of a lane. *out*: handed out · *kept*: here, and may be handed out · *later*: waits for its
    time · *oldest*: stamp of the first that is kept."""

    lane: str
    out: int = 0
    kept: int = 0
    later: int = 0
    oldest: int | None = None


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """What members tell each other: whom they know, with what each reads, and who is gone. *asks*: the queue to which
    to answer with *member* and *counts*."""

    known: Mapping[str, Sequence[str]] = {}
    gone: Sequence[str] = ()
    asks: str = ""
    member: str = ""
    counts: Sequence[Count] = ()

    def encoded(self) -> bytes:
        """Return it as the body of a message."""
        return _encode(self)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Word).decode


def heard(body: bytes) -> Word | None:
    """Return what was said, or None: nobody of ours has said it."""
    try:
        return _decode(body)
    except msgspec.MsgspecError:
        return None


class Circle:
    """Whom one member knows. Queues are named so that they sort by when their members came."""

    def __init__(self, me: str, topics: Sequence[str]) -> None:
        self.me = me
        self.known: dict[str, Sequence[str]] = {me: topics}
        self._gone: dict[str, None] = {}

    def hear(self, word: Word) -> bool:
        """Take in what was said; whether it is news."""
        before = len(self.known)
        fresh = {name: topics for name, topics in word.known.items() if name not in self._gone}
        news = bool(fresh.keys() - self.known.keys())
        self.known.update(fresh)
        return self.lose(word.gone) or news or len(self.known) != before

    def lose(self, names: Sequence[str]) -> bool:
        """Forget who is gone, for good; whether one of them was known."""
        lost = [name for name in names if name != self.me and self.known.pop(name, None) is not None]
        self._gone.update(dict.fromkeys(name for name in names if name != self.me))
        while len(self._gone) > _GONE_MAX:
            del self._gone[next(iter(self._gone))]
        return bool(lost)

    def next(self) -> str | None:
        """Return whom to ask whether it is there: the next one in the ring; None if there is nobody else."""
        names = sorted(self.known)
        if len(names) < 2:
            return None
        return names[(names.index(self.me) + 1) % len(names)]

    def readers(self, topic: str) -> list[str]:
        """Return who reads *topic*, in the order in which they came."""
        return sorted(name for name, topics in self.known.items() if topic in topics)
