"""What the adapters to brokers of queues do alike: joining, sending key by key, moving, and looking at dead letters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import msgspec

from tidewire.errors import ConfigurationError, TransportRefused
from tidewire.model import (
    Address,
    Browsed,
    DeadChannel,
    Delivery,
    Message,
    Move,
    Receipt,
    Settlement,
    Subscription,
    TopicInfo,
    TopicSpec,
)
from tidewire.testing.simulation.models.common import Series, dead_channel, series_of
from tidewire.testing.simulation.models.links import Refusal

__all__ = [
    "browse_letters",
    "demand_prefetch",
    "demand_provisioned",
    "remove_letters",
    "send_by_key",
    "settle_moves",
    "topic_info",
]


class Copy(Protocol):
    """A message on its way to a queue, with what its broker needs beside it."""

    @property
    def message(self) -> Message:
        """Return the message."""
        ...


C = TypeVar("C", bound=Copy)
Take = Callable[[DeadChannel, Sequence[str]], Awaitable[Sequence[Browsed]]]
"""Takes all of a dead channel for a moment, removes what is at these positions, and returns all of it in order."""


# --- membership -----------------------------------------------------------------------------------------------


def demand_prefetch(subscription: Subscription) -> None:
    """Raise `ConfigurationError` for a prefetch with which nothing would come."""
    if subscription.prefetch < 1:
        raise ConfigurationError(f"{subscription.group}: prefetch is {subscription.prefetch}, at least 1 is needed")


@contextmanager
def demand_provisioned(group: str) -> Generator[None]:
    """Raise `ConfigurationError` when the server refuses to let somebody join: something is not there."""
    try:
        yield
    except Refusal as error:
        raise ConfigurationError(f"{group}: {error.message}", hint="provision it first") from error


# --- sending and moving ---------------------------------------------------------------------------------------


async def send_by_key(
    copies: Sequence[C], send: Callable[[Sequence[C], bool], Awaitable[Sequence[Receipt]]]
) -> list[Receipt]:
    """Send *copies*, of each key one at a time: behind one that is not stored nothing of its key may go.

    *send* sends a batch with each key at most once. It hears whether something sent before it may be stored: if so,
    it does not raise what goes wrong, but says it in the receipts.
    """
    receipts: dict[int, Receipt] = {}
    failed: set[Series] = set()
    left = list(enumerate(copies))
    while left:
        batch: list[tuple[int, C]] = []
        busy: set[Series] = set()
        later: list[tuple[int, C]] = []
        for place, copy in left:
            key = series_of(copy.message)
            if key in failed:
                receipts[place] = Receipt(copy.message.id, "rejected", "after_failure")
            elif key in busy:
                later.append((place, copy))
            else:
                batch.append((place, copy))
                busy |= {key} if key else set()
        some = any(receipt.ok or receipt.status == "unknown" for receipt in receipts.values())
        for (place, copy), receipt in zip(batch, await send([copy for _, copy in batch], some), strict=True):
            receipts[place] = receipt
            if not receipt.ok and (key := series_of(copy.message)) is not None:
                failed.add(key)
        left = later
    return [receipts[place] for place in range(len(copies))]


async def settle_moves(
    moves: Iterable[Move],
    receipts: Iterable[Receipt],
    ack: Callable[[Sequence[Delivery]], Awaitable[Sequence[Settlement]]],
) -> list[Settlement]:
    """Ack those *moves* of which everything is stored, by the *receipts* of their messages; the others have failed."""
    coming = iter(receipts)
    settled = [Settlement(one.delivery, "failed", [next(coming) for _ in one.messages]) for one in moves]
    stored = [place for place, one in enumerate(settled) if all(receipt.ok for receipt in one.receipts)]
    acked = await ack([settled[place].delivery for place in stored])
    for place, one in zip(stored, acked, strict=True):
        settled[place] = msgspec.structs.replace(one, receipts=settled[place].receipts)
    return settled


# --- looking -------------------------------------------------------------------------------------------------


def topic_info(name: str, settings: Mapping[str, object]) -> TopicInfo:
    """Return a topic as it was provisioned: what was published to it, such a broker cannot tell."""
    spec = msgspec.convert({"name": name, **settings}, TopicSpec)
    return TopicInfo(
        name=spec.name, lanes=spec.lanes, messages=None, size_bytes=None, retention=spec.retention,
        size_bytes_max=spec.size_bytes_max,
    )  # fmt: skip


async def browse_letters(take: Take, address: Address, *, after: int | str | None, limit: int) -> list[Browsed]:
    """Return dead letters, as an `Inspector` does.

    Raises:
        TransportRefused: it is no dead channel, or there is none.
    """
    place = "" if after is None else _position(after)
    if not isinstance(address, DeadChannel):
        raise TransportRefused("this broker shows a message only by handing it out")
    found = await take(address, [])
    return [one for one in found if str(one.position) > place][:limit]


async def remove_letters(take: Take, channel: Address, positions: Sequence[int | str]) -> int:
    """Remove dead letters and return how many there were, as an `Inspector` does.

    Raises:
        TransportRefused: it is no dead channel, or there is none.
    """
    wanted = [_position(position) for position in positions]
    there = await take(dead_channel(channel), wanted)
    return sum(one.position in wanted for one in there)


def _position(text: int | str) -> str:
    name = str(text)
    if not name.replace(".", "").isdigit():
        raise TransportRefused(f"{text!r} is no position of this broker")
    return name
