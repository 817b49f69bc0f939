"""What the adapters of all models do alike: small checks, and values that mean the same to each of them."""

from __future__ import annotations

import os
import zlib
from collections.abc import AsyncGenerator, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Protocol, TypeAlias, TypeVar

from tidewire.errors import TransportClosed, TransportRefused
from tidewire.model import Address, Change, DeadChannel, Message, Receipt, Release, Subscription, TopicSpec
from tidewire.transports.memory.broker import size_of

__all__ = [
    "Lifetime",
    "Series",
    "compared",
    "dead_channel",
    "demand_no_delay",
    "joined",
    "lane_of",
    "position_number",
    "series_of",
    "settings_of",
    "size_of",
    "turned",
    "unfit",
]


class Lifetime:
    """How long a transport may be used: until it is closed, and only in the process that opened it."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._closed = False

    def end(self) -> None:
        """Refuse every call from now on."""
        self._closed = True

    def check(self) -> None:
        """Raise `TransportClosed` when it is closed, or belongs to the process that was forked."""
        if os.getpid() != self._process:
            raise TransportClosed("the transport belongs to the process that was forked")
        if self._closed:
            raise TransportClosed("the transport is closed")


# --- membership -------------------------------------------------------------------------------------------------


class _Member(Protocol):
    async def join(self) -> None: ...

    async def drain(self) -> None: ...

    async def leave(self) -> None: ...


T = TypeVar("T")
M = TypeVar("M", bound=_Member)


@asynccontextmanager
async def joined(receiver: M) -> AsyncGenerator[M]:
    """Let *receiver* be a member; on leaving it settles what it has, unless something went wrong."""
    try:
        await receiver.join()
        yield receiver
        await receiver.drain()
    finally:
        await receiver.leave()


def demand_no_delay(subscription: Subscription, releases: Sequence[Release]) -> None:
    """Raise `ValueError` for a release with a delay under ordering by key."""
    if subscription.ordering == "key" and any(one.delay > timedelta(0) for one in releases):
        raise ValueError("under ordering by key a release has no delay: hold the key, or move the delivery")


def turned(items: Sequence[T], by: int) -> list[T]:
    """Return *items* in their order, beginning with another one for each *by*: so that each has its turn."""
    first = by % len(items) if items else 0
    return [*items[first:], *items[:first]]


# --- publishing -------------------------------------------------------------------------------------------------


Series: TypeAlias = tuple[Address, str]
"""An address and a key: what keeps its order."""


def lane_of(key: str, lanes: int) -> int:
    """Return the lane of a key."""
    return zlib.crc32(key.encode(errors="surrogatepass")) % lanes


def series_of(message: Message) -> Series | None:
    """Return what *message* belongs to in order; None if it has no key."""
    return None if message.key is None else (message.to, message.key)


def unfit(message: Message, failed: Container[Series | None], most: int) -> Receipt | None:
    """Return why *message* must not be sent, if so: one before it *failed*, or it is too large."""
    if series_of(message) in failed:
        return Receipt(message.id, "rejected", "after_failure")
    size = size_of(message)
    if size > most:
        return Receipt(message.id, "rejected", "too_large", f"{size} bytes with headers; at most {most}")
    return None


# --- operating --------------------------------------------------------------------------------------------------


def settings_of(spec: TopicSpec) -> dict[str, object]:
    """Return what a topic is to be like, by the names of its settings."""
    return {"lanes": spec.lanes, "retention": spec.retention, "size_bytes_max": spec.size_bytes_max}


def compared(what: str, there: Mapping[str, object], wanted: Mapping[str, object]) -> Change:
    """Return the change of *what* is there already: none, or a conflict that names what differs."""
    differ = [f"{name} is {there[name]}, not {value}" for name, value in wanted.items() if there[name] != value]
    return Change("conflict", what, "; ".join(differ)) if differ else Change("unchanged", what)


def dead_channel(channel: Address) -> DeadChannel:
    """Return *channel*, of which something is to be removed; raise `TransportRefused` if it is no dead channel."""
    if not isinstance(channel, DeadChannel):
        raise TransportRefused(f"{channel} is no dead channel: nothing can be removed from it")
    return channel


def position_number(position: int | str) -> int:
    """Return a position that is a number."""
    try:
        return int(position)
    except ValueError:
        raise TransportRefused(f"{position!r} is no position of this broker") from None
