"""Letting go what is old *and* settled by every group. Kafka itself would also remove what a group still waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

from tidewire.errors import TransportError, TransportRefused
from tidewire.model import InboxChannel
from tidewire.protocols import Clock
from tidewire.transports.kafka.asking import Asker, Place
from tidewire.transports.kafka.library import at_or_after
from tidewire.transports.kafka.names import address_of
from tidewire.transports.kafka.topology import Names, kept_by_us

__all__ = ["watch_for_ever"]

_logger = logging.getLogger("tidewire.kafka")
_OFTEN, _WATCH, _SELDOM = 0.5, 5.0, 60.0


async def watch_for_ever(
    names: Names, topics: Sequence[str], clock: Clock, *, gone: Callable[[TransportError], None]
) -> None:
    """Until cancelled: sweep *topics*, four times in the shortest of their retentions, at most once a minute.

    Between, see that they are there: a group whose topic is deleted hears nothing of it, it is only given no lanes.
    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        try:
            if missing := await names.asker.missing(topics):
                gone(TransportRefused(f"topic {', '.join(missing)} is no longer there", hint="it was deleted"))
                return
            if loop.time() >= due:
                due = loop.time() + await _sweep_all(names, topics, clock)
        except TransportError as error:
            _logger.info("tidewire.kafka.not_swept", extra={"error_type": type(error).__name__})
        await asyncio.sleep(min(_WATCH, max(_OFTEN, due - loop.time())))


async def _sweep_all(names: Names, topics: Sequence[str], clock: Clock) -> float:
    """Sweep those whose retention is ours to see to; return after how many seconds to do it again."""
    pause = _SELDOM
    configs = await names.asker.configs(topics)
    for topic in topics:
        retention = kept_by_us(configs[topic])
        if retention is not None:
            pause = min(pause, max(_OFTEN, retention.total_seconds() / 4))
            await sweep(names, topic, clock.now_us() - retention // timedelta(microseconds=1))
    return pause


async def sweep(names: Names, topic: str, before: int) -> None:
    """Let go what was stored before a time (µs since 1970) and what every group of *topic* has settled."""
    asker, places = names.asker, names.places(topic)
    begins = await asker.begins(places)
    ends = await asker.ends(places)
    old = await asker.offsets(places, at_or_after(before))
    keep = {place: ends[place] if old[place] < 0 else old[place] for place in places}
    keep = {place: end for place, end in keep.items() if end > begins[place]}
    if not keep:
        return
    await names.look()  # a group that came since then has its say
    for log in list(names.all()):
        address = address_of(log)
        if isinstance(address, InboxChannel) and address.topic == topic:
            keep = await _settled(asker, address.group, keep, begins)
    await asker.let_go({place: end for place, end in keep.items() if end > begins[place]})


async def _settled(asker: Asker, group: str, keep: dict[Place, int], begins: dict[Place, int]) -> dict[Place, int]:
    """Return *keep*, lowered to what *group* has settled; a group whose place is unknown has settled nothing."""
    committed = (await asker.committed({group: list(keep)}))[group]
    return {
        place: min(end, committed[place][0] if place in committed else begins[place]) for place, end in keep.items()
    }
