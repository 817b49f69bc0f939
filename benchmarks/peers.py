"""FastStream at the same work, by its documented settings for at least once: an ack when the handler has returned.

It decodes with its msgspec serializer, the quicker one. Where it is not installed, that is said and nothing measured.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec

from benchmarks.measure import Sample
from benchmarks.throughput import counted
from benchmarks.work import Counter, OrderPlaced
from tidewire.chance import UUID7Ids

__all__ = ["faststream_is_here", "kafka_consume", "rabbitmq_consume"]

_PREFETCH = 256


def faststream_is_here(broker: str) -> bool:
    """Whether FastStream is installed; says so if it is not."""
    here = find_spec("faststream") is not None
    if not here:
        print(f'!!! NOT MEASURED: {broker} beside FastStream: pip install "tidewire[bench]"', file=sys.stderr)
    return here


async def kafka_consume(servers: str, topic: str, count: int) -> Sample:
    """Let a new group handle *count* events: its confluent broker, no auto-commit, a commit for each event."""
    from fast_depends.msgspec import MsgSpecSerializer
    from faststream import AckPolicy
    from faststream.confluent import KafkaBroker

    counter = Counter()
    broker = KafkaBroker(servers, serializer=MsgSpecSerializer(), logger=None)

    @broker.subscriber(
        topic,
        group_id=f"f{UUID7Ids().event_id()[-12:]}",
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def seen(placed: OrderPlaced) -> None:
        counter.add()

    return await _drained(broker, counter, count)


async def rabbitmq_consume(url: str, queues: list[str], count: int) -> Sample:
    """Handle *count* events of these quorum queues: a channel with a prefetch, an ack for each event."""
    from fast_depends.msgspec import MsgSpecSerializer
    from faststream import AckPolicy
    from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

    counter = Counter()
    broker = RabbitBroker(
        url, serializer=MsgSpecSerializer(), logger=None, default_channel=Channel(prefetch_count=_PREFETCH)
    )

    async def seen(placed: OrderPlaced) -> None:
        counter.add()

    for name in queues:
        arguments = {"x-single-active-consumer": True}
        queue = RabbitQueue(name, queue_type=QueueType.QUORUM, durable=True, arguments=arguments)
        broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)(seen)
    return await _drained(broker, counter, count)


async def _drained(broker: object, counter: Counter, count: int) -> Sample:
    """Start *broker* and account for all but the first events that *counter* sees."""
    async with broker:  # type: ignore[attr-defined]
        await broker.start()  # type: ignore[attr-defined]
        await counter.reach(1)
        return await counted(count - counter.count, partial(counter.reach, count))
