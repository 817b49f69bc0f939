"""The promises of the design, one named test each. They run over every transport and store of this version."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from runtime_doubles import DelayedCommits, Hushable, Proxy
from runtime_world import Opened, OrderPlaced, PageViewed, PaymentTaken

from tidewire import ConfigurationError, Context, Options, PublishRejected, Reject, Retry, RetryAfter, Service
from tidewire.errors import StoreUnavailable
from tidewire.model import GroupSpec, Message, Topic, TopicSpec
from tidewire.rules.letters import redriven

FAST = Retry(attempts=4, first_delay=timedelta(milliseconds=5), factor=2.0)


def test_promise_1_publish_returns_once_the_event_is_stored(opened: Opened) -> None:
    """What `publish` confirmed reaches a service that starts only afterwards."""
    service, seen = Service("billing"), list[str]()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        seen.append(order.order_id)

    async def scenario() -> None:
        async with opened() as world:
            await world.transport.provision([TopicSpec("shop.order", lanes=4)], [GroupSpec("billing", ["shop.order"])])
            async with world.running(Service("shop")) as shop:
                await shop.publisher.publish(OrderPlaced("1"))
            async with world.running(service):
                await world.until(lambda: seen == ["1"])

    asyncio.run(scenario())


def test_promise_1_a_refused_event_raises(opened: Opened) -> None:
    """What the broker will not store is `PublishRejected`, never a silent loss."""

    async def scenario() -> None:
        async with opened() as world, world.running(Service("shop")) as shop:
            with pytest.raises(PublishRejected, match="too_large"):
                await shop.publisher.publish(OrderPlaced("1", note="x" * 3_000_000))

    asyncio.run(scenario())


def test_promise_1_publishing_again_with_the_same_id_is_one_event(opened: Opened) -> None:
    """A caller that does not know whether it was stored repeats with the id, and the effect happens once."""
    service, seen = Service("billing"), list[str]()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        seen.append(order.order_id)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            for _ in range(3):
                await app.publisher.publish(OrderPlaced("1"), id="order-1")
            await app.publisher.publish(OrderPlaced("2"))
            await world.until(lambda: "2" in seen)
            await world.until(lambda: world.settled("shop.order", "billing"))
            assert ["1", "2"] == sorted(seen)

    asyncio.run(scenario())


def test_promise_2_no_ack_before_the_effect_is_committed(opened: Opened) -> None:
    """While the commit is outstanding the broker still has the event in flight."""
    service = Service("billing")
    released, handled = asyncio.Event(), asyncio.Event()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        handled.set()

    async def scenario() -> None:
        async with opened() as world:
            world.store = DelayedCommits(world.store, released)
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("1"))
                await handled.wait()
                await asyncio.sleep(0.1)
                stats = await world.transport.stats("shop.order", "billing")
                assert 1 == stats.in_flight
                released.set()
                await world.until(lambda: world.settled("shop.order", "billing"))

    asyncio.run(scenario())


def test_promise_2_a_dead_letter_is_stored_before_its_ack(opened: Opened) -> None:
    """A rejected event is in the dead channel, with its reason, as soon as it is no longer in flight."""
    service = Service("billing")

    @service.on(OrderPlaced, on_dead_letter="continue")
    async def refuse(order: OrderPlaced) -> None:
        raise Reject("an order must cost something")

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            event_id = await app.publisher.publish(OrderPlaced("1", Decimal(0)))
            await world.until(lambda: world.settled("shop.order", "billing"))
            letters = await world.dead("shop.order", "billing")
            assert [event_id] == [letter.message.id for letter in letters]
            assert "permanent" == letters[0].message.headers["dl-reason"]
            assert "an order must cost something" in letters[0].message.headers["dl-detail"]

    asyncio.run(scenario())


def test_promise_3_a_key_keeps_its_order_across_retries_while_others_go_on(opened: Opened) -> None:
    """A failing event holds its own key: its successors wait, the other keys do not."""
    service, order_of = Service("billing"), defaultdict[str, list[int]](list)
    finished: list[str] = []

    @service.on(OrderPlaced, retry=Retry(attempts=5, first_delay=timedelta(milliseconds=150), factor=1.0))
    async def take(order: OrderPlaced, context: Context) -> None:
        if order.order_id == "bad" and order.number == 2 and context.attempt < 3:
            raise RuntimeError("not yet")
        order_of[order.order_id].append(order.number)
        finished.append(order.order_id)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            for number in range(1, 6):
                await app.publisher.publish_all([OrderPlaced("bad", number=number), OrderPlaced("good", number=number)])
            await world.until(lambda: len(finished) == 10)
            assert [1, 2, 3, 4, 5] == order_of["bad"]
            assert [1, 2, 3, 4, 5] == order_of["good"]
            assert finished.index("good") < finished.index("bad", 1), finished

    asyncio.run(scenario())


def test_promise_3_different_keys_overlap_and_one_key_does_not(opened: Opened) -> None:
    """Per key strictly one after another, different keys at the same time."""
    service = Service("billing")
    running_now: dict[str, int] = defaultdict(int)
    most = {"key": 0, "all": 0}
    all_five = asyncio.Event()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        running_now[order.order_id] += 1
        most["key"] = max(most["key"], running_now[order.order_id])
        most["all"] = max(most["all"], sum(running_now.values()))
        if most["all"] == 5:
            all_five.set()
        await all_five.wait()  # one key that held up another would wait for ever
        await asyncio.sleep(0.01)
        running_now[order.order_id] -= 1

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced(str(n % 5), number=n) for n in range(25)])
            await world.until(lambda: world.observer.count("settled") == 25)
            assert {"key": 1, "all": 5} == most

    asyncio.run(scenario())


def test_promise_3_a_broker_without_order_refuses_an_ordered_service(opened: Opened) -> None:
    """No silent downgrade: the start fails and names the handler."""
    service = Service("billing")

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        return None

    async def scenario() -> None:
        async with opened() as world:
            capabilities = msgspec.structs.replace(world.transport.capabilities, order=False)
            world.transport = Proxy(world.transport, capabilities=capabilities)
            with pytest.raises(ConfigurationError, match=r"billing\.take: this broker cannot keep order"):
                async with world.running(service):
                    pass

    asyncio.run(scenario())


def test_promise_4_a_zombie_cannot_commit_or_settle(opened: Opened) -> None:
    """A member whose lane was taken over finds its unit fenced, and the event runs again at the new owner."""
    service, seen = Service("billing"), list[int]()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced, context: Context) -> None:
        if not seen:  # while this runs, somebody adopts every lane under a higher epoch
            for number in range(4):
                await world_of["world"].store.lanes.adopt("billing", f"shop.order/{number}", 2**60)
        seen.append(context.attempt)

    world_of: dict[str, Any] = {}

    async def scenario() -> None:
        async with opened() as world:
            world_of["world"] = world
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("1"))
                await world.until(lambda: seen)
                await asyncio.sleep(0.1)
                assert 0 == world.observer.count("settled"), "a fenced unit must not be acked"
                assert not await world.settled("shop.order", "billing")

    asyncio.run(scenario())


def test_promise_4_shutdown_spends_no_attempt(opened: Opened) -> None:
    """An event cut off by a stop comes back as a first attempt, without a failure on record."""
    first, second = Service("billing"), Service("billing")
    attempts: list[int] = []
    started = asyncio.Event()

    @first.on(OrderPlaced)
    async def take(order: OrderPlaced, context: Context) -> None:
        started.set()
        await asyncio.sleep(60)

    @second.on(OrderPlaced, name="take")
    async def take_again(order: OrderPlaced, context: Context) -> None:
        attempts.append(context.attempt)

    async def scenario() -> None:
        async with opened() as world:
            world.options = Options(lease=timedelta(seconds=1), grace=timedelta(milliseconds=50), lanes=4)
            async with world.running(first) as app:
                await app.publisher.publish(OrderPlaced("1"))
                await started.wait()
            async with world.running(second):
                await world.until(lambda: attempts)
            assert [1] == attempts
            assert 0 == world.observer.count("retried")

    asyncio.run(scenario())


def test_promise_5_a_dead_letter_holds_everything_and_is_redriven_to_its_group_alone(opened: Opened) -> None:
    """Original bytes and headers, first and last error, counts by type; a redrive reaches only that group."""
    billing = Service("billing")
    mended = asyncio.Event()
    done: list[str] = []

    @billing.on(OrderPlaced, retry=FAST, on_dead_letter="continue")
    async def take(order: OrderPlaced, context: Context) -> None:
        if not mended.is_set():
            raise ValueError(f"attempt {context.attempt}")
        done.append(order.order_id)

    async def scenario() -> None:
        async with opened() as world, world.running(billing) as app:
            await world.transport.provision([TopicSpec("shop.order", lanes=4)], [GroupSpec("audit", ["shop.order"])])
            event_id = await app.publisher.publish(OrderPlaced("1"), headers={"tenant": "acme"})
            await world.until(lambda: world.settled("shop.order", "billing"))
            (letter,) = await world.dead("shop.order", "billing")
            headers = letter.message.headers
            assert (event_id, "acme", "exhausted") == (letter.message.id, headers["tenant"], headers["dl-reason"])
            assert OrderPlaced("1").order_id == msgspec.json.decode(letter.message.body)["order_id"]
            assert "ValueError: attempt 1" == headers["dl-first-error"]
            assert "ValueError: attempt 4" == headers["dl-last-error"]
            assert {"ValueError": 4} == msgspec.json.decode(headers["dl-error-counts"])
            assert "4" == headers["dl-attempts"]

            mended.set()
            await world.transport.publish([redriven(letter.message)])
            await world.transport.remove(letter.message.to, [letter.position])
            await world.until(lambda: done == ["1"])
            assert [] == await world.dead("shop.order", "billing")
            stats = await world.transport.stats("shop.order", "audit")
            assert 1 == stats.ready, "the redrive must not reach another group"

    asyncio.run(scenario())


def test_promise_5_an_unordered_retry_lets_everything_else_pass(opened: Opened) -> None:
    """Without a key only the failing event waits: all others are handled long before its delay is over."""
    service, seen = Service("stats", concurrency=1), list[int]()
    delay = timedelta(seconds=2)

    @service.on(PageViewed)
    async def view(page: PageViewed, context: Context) -> None:
        if page.number == 0 and context.attempt == 1:
            raise RetryAfter(delay)
        seen.append(page.number)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(20)])
            await world.until(lambda: len(seen) == 19, seconds=delay.total_seconds() * 0.9)
            await world.until(lambda: len(seen) == 20)
            assert (list(range(20)), 0) == (sorted(seen), seen[-1])

    asyncio.run(scenario())


def test_promise_6_at_most_prefetch_events_are_in_the_process(opened: Opened) -> None:
    """A slow consumer slows its source, not the memory."""
    service = Service("billing", prefetch=8, concurrency=2)
    begun, gate = 0, asyncio.Event()

    @service.on(PageViewed)
    async def view(page: PageViewed) -> None:
        nonlocal begun
        begun += 1
        await gate.wait()

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(100)])
            await world.until(lambda: begun == 2)
            await asyncio.sleep(0.2)
            stats = await world.transport.stats("shop.page", "billing")
            assert 2 <= (stats.in_flight or 0) <= 8
            gate.set()
            await world.until(lambda: world.settled("shop.page", "billing"))

    asyncio.run(scenario())


def test_promise_7_a_deaf_subscription_is_noticed_and_rebuilt(opened: Opened) -> None:
    """Connected but given nothing while events wait: health says so, the membership is rebuilt, events flow."""
    service, seen = Service("billing"), list[str]()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        seen.append(order.order_id)

    async def scenario() -> None:
        async with opened() as world:
            world.options = Options(lanes=4, stuck_after=timedelta(milliseconds=400), grace=timedelta(seconds=1))
            world.transport = broker = Hushable(world.transport)
            async with world.running(service) as app:
                await broker.hush()
                await app.publisher.publish(OrderPlaced("1"))
                await world.until(lambda: not app.ready)
                await world.until(lambda: seen == ["1"])
                assert 1 <= app.health()["0"].rebuilds
                await world.until(lambda: app.ready)

    asyncio.run(scenario())


def test_an_outage_is_nobodys_failure(opened: Opened) -> None:
    """A database that is down pauses the subscription: no attempt is spent and the dead channel stays empty."""
    service, attempts = Service("billing"), list[int]()
    down = True

    @service.on(OrderPlaced, retry=Retry(attempts=1))
    async def take(order: OrderPlaced, context: Context) -> None:
        attempts.append(context.attempt)
        if down:
            raise StoreUnavailable("the database does not answer")

    async def scenario() -> None:
        nonlocal down
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("1"))
            await world.until(lambda: len(attempts) >= 3)
            assert not app.ready
            down = False
            await world.until(lambda: world.settled("shop.order", "billing"))
            assert {1} == set(attempts)
            assert [] == await world.dead("shop.order", "billing")

    asyncio.run(scenario())


def test_what_cannot_be_read_becomes_a_dead_letter_with_its_reason(opened: Opened) -> None:
    """No type, an unknown version, a body that is not the type: kept, named, and the next good one is handled."""
    service, seen = Service("billing"), list[str]()

    @service.on(OrderPlaced, on_dead_letter="continue")
    async def take(order: OrderPlaced) -> None:
        seen.append(order.order_id)

    def broken(event_id: str, body: bytes, **headers: str) -> Message:
        return Message(Topic("shop.order"), event_id, "test", None, headers, body)

    typed = {"ce-id": "x", "ce-source": "test", "ce-type": "shop.order.placed"}

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await world.transport.publish(
                [
                    broken("no-type", b"{}"),
                    broken("bad-body", b"\xff\x00", **typed),
                    broken("deep", b"[" * 100_000, **typed),
                    broken("version", b"{}", **typed, **{"ce-schemaversion": "99"}),
                ]
            )
            await app.publisher.publish(OrderPlaced("good"))
            await world.until(lambda: seen == ["good"])
            await world.until(lambda: world.settled("shop.order", "billing"))
            reasons = {
                letter.message.id: letter.message.headers["dl-reason"]
                for letter in await world.dead("shop.order", "billing")
            }
            expected = {
                "no-type": "unknown-type",
                "bad-body": "undecodable",
                "deep": "undecodable",
                "version": "unknown-version",
            }
            assert expected == reasons

    asyncio.run(scenario())


def test_same_id_with_another_body_is_an_alarm_not_a_duplicate(opened: Opened) -> None:
    """The inbox mark holds a digest: other bytes under a known id are kept as a dead letter (IX-7)."""
    service, seen = Service("billing"), list[str]()

    @service.on(OrderPlaced, on_dead_letter="continue")
    async def take(order: OrderPlaced) -> None:
        seen.append(order.order_id)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("1"), id="same")
            await world.until(lambda: seen)
            await world.until(lambda: world.settled("shop.order", "billing"))
            message = app.publisher.message(OrderPlaced("2"), event_id="same")
            inbox = msgspec.structs.replace(message, to=redriven_to("shop.order", "billing"))
            await world.transport.publish([inbox])
            await world.until(lambda: world.observer.count("dead_lettered") == 1)
            await world.until(lambda: world.settled("shop.order", "billing"))
            (letter,) = await world.dead("shop.order", "billing")
            assert "conflict" == letter.message.headers["dl-reason"]
            assert ["1"] == seen

    asyncio.run(scenario())


def redriven_to(topic: str, group: str) -> Any:
    """The inbox channel, where a redrive would put a message."""
    from tidewire.model import InboxChannel

    return InboxChannel(topic, group)


@pytest.mark.parametrize("with_store", [True, False])
def test_returned_events_are_published_and_caused(opened: Opened, with_store: bool) -> None:
    """They carry the correlation of their cause and its id as causation id, with a store and without."""
    billing, mail = Service("billing"), Service("mail")
    heard: list[Any] = []

    @billing.on(OrderPlaced, on_dead_letter=None if with_store else "continue")
    async def take(order: OrderPlaced) -> PaymentTaken:
        return PaymentTaken(order.order_id)

    @mail.on(PaymentTaken)
    async def tell(payment: PaymentTaken, context: Context) -> None:
        heard.append(context.envelope)

    async def scenario() -> None:
        async with opened() as world, world.running(billing, store=with_store) as app, world.running(mail):
            event_id = await app.publisher.publish(OrderPlaced("1"), id="cause")
            await world.until(lambda: heard)
            assert (event_id, event_id) == (heard[0].correlationid, heard[0].causationid)
            assert "billing" == heard[0].source

    asyncio.run(scenario())
