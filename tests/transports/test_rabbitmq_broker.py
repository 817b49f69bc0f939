"""The RabbitMQ transport at a real broker, beyond the conformance suite: alarms, silence, TLS, messages of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import wraps
from itertools import count

import aiormq
import msgspec
import pytest
from kafka_proxy import proxy
from pamqp import commands as spec

from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.model import DeadChannel, Delivery, GroupSpec, InboxChannel, Message, Subscription, Topic, TopicSpec
from tidewire.protocols import Receiver
from tidewire.testing.servers.rabbitmq import RabbitServer
from tidewire.transports.rabbitmq import RabbitTransport, open_rabbit_transport
from tidewire.transports.rabbitmq.line import open_line
from tidewire.transports.rabbitmq.settings import settings_of

_numbers = count(1)
OLD = "broker.old"


def on_a_loop(test: Callable[[RabbitServer], Coroutine[object, object, None]]) -> Callable[[RabbitServer], None]:
    """Run a test on an event loop of its own."""

    @wraps(test)
    def run(rabbitmq_server: RabbitServer) -> None:
        asyncio.run(test(rabbitmq_server))

    return run


def fresh() -> str:
    """Return the name of a topic that no other test uses."""
    return f"broker.test{next(_numbers)}"


def event(topic: str, number: int = 0) -> Message:
    """Return an event with a key."""
    return Message(Topic(topic), f"{topic}-{number}", "test", "k", {"ce-type": "a.b"}, str(number).encode())


@pytest.fixture(autouse=True, scope="module")
def old_topic(rabbitmq_server: RabbitServer) -> None:
    """Make the topic of the last test first: a killed broker may lose track of a queue that is seconds old."""

    async def make() -> None:
        async with opened(rabbitmq_server.url, OLD):
            pass

    asyncio.run(make())


@asynccontextmanager
async def opened(url: str, topic: str, *, lanes: int = 2) -> AsyncGenerator[RabbitTransport]:
    """Open a transport with a topic and the group "billing" on it."""
    async with open_rabbit_transport(url) as transport:
        await transport.provision([TopicSpec(topic, lanes)], [GroupSpec("billing", [topic])])
        yield transport


def place(topic: str) -> Subscription:
    """Return a subscription of a member with a short lease."""
    return Subscription("billing", [topic], "m-1", lease=timedelta(seconds=2), grace=timedelta(milliseconds=200))


async def taken(receiver: Receiver, number: int) -> list[Delivery]:
    """Receive until there are *number* deliveries, through whatever is unavailable meanwhile."""
    found: list[Delivery] = []
    async with asyncio.timeout(60):
        while len(found) < number:
            try:
                batch = await receiver.receive(100, timedelta(seconds=1))
            except TransportUnavailable:
                continue
            found += [one for one in batch if isinstance(one, Delivery)]
    return found


@on_a_loop
async def test_a_disk_alarm_stops_publishers_and_nobody_else(rabbitmq_server: RabbitServer) -> None:
    """While the broker's disk is full a publish ends as unknown or unavailable, members go on, and later all works."""
    topic = fresh()
    async with opened(f"{rabbitmq_server.url}?timeout=5", topic) as transport:
        await transport.publish([event(topic, 1), event(topic, 2)])
        async with transport.subscribe(place(topic)) as receiver:
            found = await taken(receiver, 2)
            await asyncio.to_thread(rabbitmq_server.raise_disk_alarm)
            try:
                for number in (3, 4):
                    with suppress(TransportUnavailable):  # when it has heard of the alarm, nothing is handed over
                        (receipt,) = await transport.publish([event(topic, number)])
                        assert "unknown" == receipt.status
                settlements = await receiver.settle(ack=found)
            finally:
                await asyncio.to_thread(rabbitmq_server.clear_disk_alarm)
            assert ["settled", "settled"] == [one.status for one in settlements]
            (receipt,) = await transport.publish([event(topic, 5)])
            assert receipt.ok
            while b"5" not in {one.message.body for one in await taken(receiver, 1)}:
                pass


@on_a_loop
async def test_a_broker_that_falls_silent_is_left_and_joined_again(rabbitmq_server: RabbitServer) -> None:
    """When nothing comes from the broker any more, calls end in time, and a member works again when it speaks."""
    topic = fresh()
    with proxy(0, rabbitmq_server.port) as wire:
        url = f"{rabbitmq_server.url_of('worker', rabbitmq_server.password, port=wire.port)}?timeout=3"
        async with opened(url, topic) as transport, transport.subscribe(place(topic)) as receiver:
            await transport.publish([event(topic, 1)])
            found = await taken(receiver, 1)
            await asyncio.to_thread(wire.say, "quiet")
            (receipt,) = await transport.publish([event(topic, 2)])
            assert "unknown" == receipt.status
            with suppress(TransportUnavailable):  # it cannot know
                assert {"lost"} == {one.status for one in await receiver.settle(ack=found)}
            await asyncio.to_thread(wire.say, "go")
            again = await taken(receiver, 1)
            assert {b"1", b"2"} >= {one.message.body for one in again}


@on_a_loop
async def test_what_waits_for_a_member_is_what_it_could_be_given(rabbitmq_server: RabbitServer) -> None:
    """What does not fit into its prefetch, or is in a lane that is paused, does not wait for it; the rest does."""
    topic = fresh()
    async with opened(rabbitmq_server.url, topic, lanes=1) as transport:
        one = msgspec.structs.replace(place(topic), prefetch=2)
        async with transport.subscribe(one) as receiver:
            await transport.publish([event(topic, number) for number in range(5)])
            found = await taken(receiver, 2)
            assert 0 == await transport.lag("billing", [f"{topic}/0"])
            await receiver.settle(ack=found[:1])
            async with asyncio.timeout(30):
                while await transport.lag("billing", [f"{topic}/0"]) != 1:  # until the next one was pushed
                    pass
            await receiver.steer(pause=[f"{topic}/0"])
            assert 0 == await transport.lag("billing", [f"{topic}/0"])


@on_a_loop
async def test_everybody_who_looks_sees_all(rabbitmq_server: RabbitServer) -> None:
    """Who looks at dead letters, or reads which topics there are, while others do too sees all of them in order; what
    a look has left that broke off is cleared away."""
    topic, url = fresh(), rabbitmq_server.url
    numbers = [str(number).encode() for number in range(30)]
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(opened(url, topic))
        letters = DeadChannel(topic, "billing")
        await transport.publish([msgspec.structs.replace(event(topic, number), to=letters) for number in range(30)])
        channel = await (await aiormq.connect(url)).channel()
        left = spec.Basic.Properties(content_type="mark", headers={"tw-at": "left"})
        await channel.basic_publish(b"", routing_key=f"{topic}.DEAD.billing", properties=left)
        await channel.connection.close()
        lookers = [await stack.enter_async_context(open_rabbit_transport(url)) for _ in range(6)]
        for _ in range(5):
            found = await asyncio.gather(*(one.browse(letters) for one in lookers))
            assert [numbers] * 6 == [[one.message.body for one in page] for page in found]
            topics = await asyncio.gather(*(one.topics() for one in lookers))
            assert all(topic in {info.name for info in page} for page in topics)
        for _ in range(10):
            assert numbers == [one.message.body for one in await transport.browse(letters)]
            assert 30 == (await transport.stats(topic, "billing")).dead


@on_a_loop
async def test_what_is_removed_does_not_come_back(rabbitmq_server: RabbitServer) -> None:
    """However many dead letters are removed at once, and wherever they lie, they are gone and the others are not: a
    channel keeps acks back that are many, and forgets them when it is closed."""
    topic = fresh()
    channel = DeadChannel(topic, "billing")
    async with opened(rabbitmq_server.url, topic) as transport:
        await transport.publish([msgspec.structs.replace(event(topic, number), to=channel) for number in range(160)])
        found = await transport.browse(channel, limit=200)
        assert 80 == await transport.remove(channel, [one.position for one in found[1::2]])
        left = await transport.browse(channel, limit=200)
        assert [one.position for one in found[0::2]] == [one.position for one in left]
        assert 80 == await transport.remove(channel, [one.position for one in found])
        assert 0 == (await transport.stats(topic, "billing")).dead


@on_a_loop
async def test_dead_letters_that_are_shown_are_not_counted_as_gone(rabbitmq_server: RabbitServer) -> None:
    """While somebody has dead letters in hand nobody can tell how many there are, and nobody says that there are none;
    once they are given back all are counted, by others too."""
    topic, url = fresh(), rabbitmq_server.url
    async with opened(url, topic) as transport:
        letter = msgspec.structs.replace(event(topic, 1), to=DeadChannel(topic, "billing"))
        await transport.publish([letter, msgspec.structs.replace(letter, id="2")])
        assert 2 == (await transport.stats(topic, "billing")).dead
        looker = await aiormq.connect(url)
        channel, shown = await looker.channel(), asyncio.Event()
        await channel.basic_consume(f"{topic}.DEAD.billing", lambda _: _set(shown))
        await asyncio.wait_for(shown.wait(), 30)
        assert (await transport.stats(topic, "billing")).dead is None
        await looker.close()
        assert 2 == (await transport.stats(topic, "billing")).dead


async def _set(shown: asyncio.Event) -> None:
    shown.set()


@on_a_loop
async def test_a_queue_with_other_arguments_is_a_conflict(rabbitmq_server: RabbitServer) -> None:
    """A queue that somebody has made otherwise is said to be so, in the broker's words, and stays as it is."""
    topic = fresh()
    connection = await aiormq.connect(rabbitmq_server.url)
    channel = await connection.channel()
    await channel.queue_declare(f"{topic}.LANE.billing.1", durable=True)
    await connection.close()
    async with open_rabbit_transport(rabbitmq_server.url) as transport:
        _, change = await transport.provision([TopicSpec(topic, 2)], [GroupSpec("billing", [topic])])
        assert "conflict" == change.kind
        assert f"{topic}.LANE.billing.1" in change.detail
        (receipt,) = await transport.publish([Message(InboxChannel(topic, "billing"), "1", "s", None, {}, b"")])
        assert ("rejected", "unknown_topic") == (receipt.status, receipt.reason)


@on_a_loop
async def test_others_write_to_a_topic_and_read_it(rabbitmq_server: RabbitServer) -> None:
    """What a plain client publishes with any routing key is handed out, in its order; what we publish it can read."""
    topic = fresh()
    connection = await aiormq.connect(rabbitmq_server.url)
    channel = await connection.channel()
    async with opened(rabbitmq_server.url, topic) as transport:
        queue = (await channel.queue_declare("", exclusive=True)).queue or ""
        for lane in ("0", "1"):
            await channel.queue_bind(queue, topic, lane)
        for number in range(5):
            told = spec.Basic.Properties(
                content_type="application/json", message_id=f"m-{number}", headers={"ce_type": "a.b", "n": number}
            )
            await channel.basic_publish(
                b'{"n": %d}' % number, exchange=topic, routing_key="order.placed", properties=told
            )
        await transport.publish([event(topic, 9)])
        async with transport.subscribe(place(topic)) as receiver:
            theirs = [one for one in await taken(receiver, 6) if one.message.key is None]
        assert [b'{"n": %d}' % number for number in range(5)] == [one.message.body for one in theirs]
        told_too = {"message-id": "m-0", "routing-key": "order.placed"}
        assert {"content-type": "application/json", "ce-type": "a.b", "n": "0", **told_too} == theirs[0].message.headers
        ours = await channel.basic_get(queue, no_ack=True)
        assert (b"9", "a.b") == (ours.body, (ours.header.properties.headers or {}).get("cloudEvents_type"))
    await connection.close()


@on_a_loop
async def test_tls_is_spoken_and_verified(rabbitmq_server: RabbitServer) -> None:
    """Over amqps:// a broker whose certificate is vouched for is used; another one is refused, typed."""
    topic = fresh()
    async with opened(f"{rabbitmq_server.tls_url}?ca={rabbitmq_server.authority}", topic) as transport:
        (receipt,) = await transport.publish([event(topic)])
        assert receipt.ok
    with pytest.raises(TransportRefused, match="certificate"):
        async with open_rabbit_transport(rabbitmq_server.tls_url):
            pass


@on_a_loop
async def test_a_queue_that_does_not_answer_is_named(rabbitmq_server: RabbitServer) -> None:
    """A broker that died may have lost a queue, and never answers about it: who waits for it says which it is, and what
    a person must do."""
    line = await open_line(settings_of(f"{rabbitmq_server.url}?timeout=0.2"), "test")
    try:
        answer = asyncio.get_running_loop().create_future()
        with pytest.raises(TransportUnavailable, match=r"from the queue a\.LANE\.g\.0") as silent:
            await line.ask(answer, queue="a.LANE.g.0")
        assert "--provision" in silent.value.hint
    finally:
        await line.close()


@on_a_loop
async def test_a_group_that_lost_a_queue_is_still_told(rabbitmq_server: RabbitServer) -> None:
    """Where one of a group's queues was deleted, its counts are unknown and it is not passed off as none; where all
    are, it is gone."""
    topic = fresh()
    async with opened(rabbitmq_server.url, topic) as transport, await aiormq.connect(rabbitmq_server.url) as connection:
        channel = await connection.channel()
        await channel.queue_delete(f"{topic}.DEAD.billing")
        (told,) = await transport.groups(topic)
        assert ("billing", None, 0) == (told.group, told.stats.ready, told.stats.dead)
        for number in range(2):
            for kind in ("LANE", "INBOX", "TOKEN"):
                await channel.queue_delete(f"{topic}.{kind}.billing.{number}")
        assert [] == await transport.groups(topic)


@on_a_loop
async def test_the_audit_is_there_before_anybody_acts(rabbitmq_server: RabbitServer) -> None:
    """The queue of the audit is made with the first topic: one that is new when the broker dies may be lost."""
    for command in (["add_vhost", "anew"], ["set_permissions", "-p", "anew", "worker", ".*", ".*", ".*"]):
        await asyncio.to_thread(rabbitmq_server.control, *command)
    url = f"{rabbitmq_server.url}/anew"
    async with opened(url, fresh()), await aiormq.connect(url) as connection:
        channel = await connection.channel()
        assert 0 == (await channel.queue_declare("tidewire.AUDIT", passive=True)).message_count


@on_a_loop
async def test_a_vhost_that_is_not_there_is_refused(rabbitmq_server: RabbitServer) -> None:
    """A vhost that does not exist is an error that a person must cure, with the broker's words."""
    with pytest.raises(TransportRefused, match="vhost"):
        async with open_rabbit_transport(f"{rabbitmq_server.url}/nowhere"):
            pass


@on_a_loop
async def test_a_member_outlives_the_broker(rabbitmq_server: RabbitServer) -> None:
    """A broker that is killed and started again under a member loses nothing, and the member goes on by itself."""
    topic = OLD
    async with opened(f"{rabbitmq_server.url}?timeout=5", topic) as transport:
        await transport.publish([event(topic, number) for number in range(20)])
        async with transport.subscribe(place(topic)) as receiver:
            first = await taken(receiver, 20)
            await receiver.settle(ack=first[:5])
            rabbitmq_server.kill()
            rabbitmq_server.start()  # in this thread: the broker ends with the one that started it
            rest = await taken(receiver, 15)
            while b"19" not in {one.message.body for one in rest}:
                rest += await taken(receiver, 1)
            # An ack that had only just come may have died with the broker: then it is handed out once more.
            assert [str(number).encode() for number in range(20)][-len(rest) :] == [one.message.body for one in rest]
            assert all(one.suspect and one.epoch > first[0].epoch for one in rest)
            assert {"settled"} == {one.status for one in await receiver.settle(ack=rest)}
