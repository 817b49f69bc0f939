"""The circuit breaker: a dependency that is down makes no dead letter, and is found again when it is up."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta

import pytest
from runtime_world import Opened, OrderPlaced, PageViewed, PaymentTaken, World
from virtual_world import in_virtual_time

from tidewire import ConfigurationError, Context, Middleware, Options, Reject, Retry, Service, domain_event
from tidewire.errors import DependencyUnavailable, StoreUnavailable
from tidewire.middleware import CircuitBreaker, circuit_breaker, timeout
from tidewire.model import Message, Topic

QUICK = Retry(attempts=3, first_delay=timedelta(milliseconds=5), factor=1.0)
ONCE = Retry(attempts=1)
SOON = timedelta(milliseconds=60)


@domain_event
class Noticed:
    """Something that another handler hears of in the same unit."""

    number: int


class Bank:
    """A dependency that is up or down, and counts who asks."""

    def __init__(self) -> None:
        self.up = False
        self.asked = 0
        self.inside = 0
        self.most_inside = 0

    async def ask(self, error: type[Exception] = ConnectionError, seconds: float = 0.001) -> None:
        self.asked += 1
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            await asyncio.sleep(seconds)
            if not self.up:
                raise error("no route to the bank")
        finally:
            self.inside -= 1


async def fails(event: object, context: Context) -> None:
    raise ConnectionError("no route")


async def nowhere(*publication: object) -> str:
    raise AssertionError(publication)


def message() -> Message:
    return Message(Topic("t"), "1", "s", None, {}, b"")


def opening(failures: int = 3, **more: timedelta) -> CircuitBreaker:
    return circuit_breaker("bank", failures=failures, reset_after=more.pop("reset_after", SOON), **more)


def guarded(breaker: CircuitBreaker, bank: Bank, done: Callable[[str, int], None], name: str = "billing") -> Service:
    """A service with one ordered handler that asks *bank* behind *breaker*."""
    service = Service(name)

    @service.on(OrderPlaced, retry=QUICK, middleware=[breaker])
    async def charge(order: OrderPlaced) -> None:
        await bank.ask()
        done(order.order_id, order.number)

    return service


def test_an_outage_opens_it_makes_no_dead_letter_and_heals(opened: Opened) -> None:
    """RT11: however long it lasts, attempts are not spent, keys keep their order, and all is handled afterwards."""
    breaker, bank, done = opening(), Bank(), defaultdict[str, list[int]](list)
    service = guarded(breaker, bank, lambda key, number: done[key].append(number))

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced(key, number=n) for n in range(4) for key in "abcdefgh"])
            await world.until(lambda: breaker.state == "open")
            before = bank.asked
            await world.until(lambda: bank.asked >= before + 3)  # as many trials as the policy has attempts
            assert "closed" != breaker.state
            assert not done
            bank.up = True
            await world.until(lambda: world.settled("shop.order", "billing"))
            assert [] == await world.dead("shop.order", "billing")
            assert "closed" == breaker.state
            assert world.observer.count("retried") <= 2  # those before the third failure in a row

    asyncio.run(scenario())
    assert {key: [0, 1, 2, 3] for key in "abcdefgh"} == done


def test_while_it_is_open_the_dependency_is_left_alone() -> None:
    """Until its time has passed nobody calls; then one event at a time is on trial, and its state says so."""
    breaker, bank, states = opening(reset_after=timedelta(milliseconds=200)), Bank(), list[str]()
    service = Service("billing")

    @service.on(PageViewed, retry=QUICK, middleware=[breaker])
    async def charge(view: PageViewed) -> None:
        states.append(breaker.state)
        await bank.ask(seconds=0.03)

    async def scenario(world: World) -> None:
        async with world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(20)])
            await world.until(lambda: breaker.state == "open")
            await asyncio.sleep(0.04)  # those that had begun before have ended
            before, bank.most_inside = bank.asked, 0
            await asyncio.sleep(0.12)
            assert before == bank.asked
            await world.until(lambda: bank.asked == before + 2)
            assert 1 == bank.most_inside
            assert ["half-open"] * 2 == states[before:]
            bank.up = True
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert [] == await world.dead("shop.page", "billing")

    in_virtual_time(scenario)


def test_one_event_that_always_fails_cannot_open_it(opened: Opened) -> None:
    """Its repeats count once: it becomes a dead letter as without a breaker, and nobody else waits for it."""
    breaker, bank, seen = opening(failures=2), Bank(), set[str]()
    service = guarded(breaker, bank, lambda key, number: None)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("1"))
            while not await world.dead("shop.order", "billing"):
                seen.add(breaker.state)
                await asyncio.sleep(0.002)

    asyncio.run(scenario())
    assert ({"closed"}, 3) == (seen, bank.asked)


def test_a_success_in_between_begins_the_count_anew(opened: Opened) -> None:
    """A few failures among good ones are the events' own, however many they become."""
    breaker, states = opening(failures=2), list[str]()
    service = Service("billing")

    @service.on(OrderPlaced, retry=ONCE, on_dead_letter="continue", middleware=[breaker])
    async def charge(order: OrderPlaced) -> None:
        states.append(breaker.state)
        if order.number % 2:
            raise ConnectionError

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced("1", number=number) for number in range(20)])
            await world.until(lambda: world.settled("shop.order", "billing"))
            assert 10 == len(await world.dead("shop.order", "billing"))

    asyncio.run(scenario())
    assert ["closed"] * 20 == states


def test_failures_further_apart_than_the_window_do_not_add_up() -> None:
    """Only what fails inside the window counts."""
    breaker, bank = opening(failures=2, window=timedelta(milliseconds=30)), Bank()
    service = Service("billing")

    @service.on(PageViewed, retry=ONCE, middleware=[breaker])
    async def charge(view: PageViewed) -> None:
        await bank.ask()

    async def scenario(world: World) -> None:
        async with world.running(service) as app:
            for number in range(3):
                await app.publisher.publish(PageViewed(number))
                await asyncio.sleep(0.1)
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert 3 == len(await world.dead("shop.page", "billing"))
            assert "closed" == breaker.state

    in_virtual_time(scenario)


def test_an_event_that_fails_its_trial_lets_another_go_first(opened: Opened) -> None:
    """An event that always fails cannot keep the breaker open when the dependency is up again."""
    breaker, bank, done, poison = opening(), Bank(), set[str](), list[str]()
    service = Service("billing")

    @service.on(OrderPlaced, retry=QUICK, on_dead_letter="continue", middleware=[breaker])
    async def charge(order: OrderPlaced) -> None:
        if breaker.state == "half-open" and not poison:
            poison.append(order.order_id)
            bank.up = True
        if order.order_id in poison:
            raise ConnectionError("this one never")
        await bank.ask()
        done.add(order.order_id)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced(key) for key in "abcdef"])
            await world.until(lambda: world.settled("shop.order", "billing"))
            assert poison == [letter.message.key for letter in await world.dead("shop.order", "billing")]
            assert "closed" == breaker.state

    asyncio.run(scenario())
    assert set("abcdef") - set(poison) == done


@pytest.mark.parametrize("error", [Reject("never"), ValueError("a bug"), StoreUnavailable("down")], ids=repr)
def test_what_says_nothing_of_the_dependency_leaves_it_as_it_is(opened: Opened, error: Exception) -> None:
    """On trial too: a verdict or a bug is the event's own, and the next one is on trial in its place."""
    breaker, bank, done, thrown = opening(), Bank(), list[str](), list[str]()
    service = Service("billing")

    @service.on(OrderPlaced, retry=QUICK, on_dead_letter="continue", middleware=[breaker])
    async def charge(order: OrderPlaced) -> None:
        if breaker.state == "half-open" and not thrown:
            thrown.append(order.order_id)
            bank.up = True
            raise error
        await bank.ask()
        done.append(order.order_id)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced(key) for key in "abcdef"])
            await world.until(lambda: world.settled("shop.order", "billing"))
            letters = await world.dead("shop.order", "billing")
            assert (thrown if isinstance(error, Reject) else []) == [letter.message.key for letter in letters]

    asyncio.run(scenario())
    assert sorted(set("abcdef") - (set(thrown) if isinstance(error, Reject) else set())) == sorted(done)


def test_even_a_breaker_for_every_exception_leaves_tidewires_own_alone(opened: Opened) -> None:
    """`Reject` is a dead letter, also while the breaker counts `Exception`."""
    breaker = circuit_breaker("bank", failures=1, reset_after=SOON, counts=Exception)
    service = Service("billing", middleware=[breaker])

    @service.on(PageViewed)
    async def refuse(view: PageViewed) -> None:
        raise Reject("not this one")

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(5)])
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert 5 == len(await world.dead("shop.page", "billing"))
            assert "closed" == breaker.state

    asyncio.run(scenario())


def test_a_stop_during_the_trial_costs_nothing_and_leaves_it_to_the_next(opened: Opened) -> None:
    """The event comes back as it was, and the breaker does not wait for a trial that was cut off."""
    breaker, bank, attempts, tried = opening(failures=1), Bank(), list[int](), asyncio.Event()
    first, second = Service("billing"), Service("billing")

    @first.on(PageViewed, name="charge", middleware=[breaker])
    async def hang(view: PageViewed) -> None:
        if breaker.state == "closed":
            raise ConnectionError
        tried.set()
        await asyncio.sleep(60)

    @second.on(PageViewed, name="charge", middleware=[breaker])
    async def charge(view: PageViewed, context: Context) -> None:
        attempts.append(context.attempt)

    async def scenario() -> None:
        async with opened() as world:
            world.options = Options(lease=timedelta(seconds=1), grace=timedelta(milliseconds=50), lanes=4)
            async with world.running(first) as app:
                await app.publisher.publish(PageViewed(1))
                await tried.wait()
                assert "half-open" == breaker.state
            assert "open" == breaker.state
            async with world.running(second):
                await world.until(lambda: attempts)
                await world.until(lambda: breaker.state == "closed")
            assert [] == await world.dead("shop.page", "billing")

    asyncio.run(scenario())
    assert ([1], 0) == (attempts, bank.asked)


def test_services_that_share_it_learn_from_one_another() -> None:
    """What one service found out, the other need not: it does not call, and both heal."""
    breaker, bank, done = opening(failures=2, reset_after=timedelta(milliseconds=400)), Bank(), list[str]()
    billing = guarded(breaker, bank, lambda key, number: done.append(f"billing {key}"))
    mail, asked = Service("mail", middleware=[breaker]), list[int]()

    @mail.on(PageViewed, retry=ONCE)
    async def send(view: PageViewed) -> None:
        asked.append(view.number)
        if not bank.up:
            raise ConnectionError

    async def scenario(world: World) -> None:
        async with world.running(billing) as app, world.running(mail):
            await app.publisher.publish_all([OrderPlaced("a"), OrderPlaced("b")])
            await world.until(lambda: breaker.state == "open")
            await app.publisher.publish(PageViewed(1))
            await asyncio.sleep(0.15)
            assert [] == asked
            bank.up = True
            await world.until(lambda: len(done) == 2 and asked)
            assert [] == await world.dead("shop.page", "mail")

    in_virtual_time(scenario)
    assert ["billing a", "billing b"] == sorted(done)


def test_a_domain_event_passes_with_the_event_that_caused_it(opened: Opened) -> None:
    """The handlers of one unit are on trial together: the inner one does not find the breaker busy with the outer."""
    breaker, bank, done = opening(failures=1), Bank(), list[str]()
    service = Service("billing", middleware=[breaker])

    @service.on(PageViewed)
    async def outer(view: PageViewed, context: Context) -> None:
        await bank.ask()
        await context.publish(Noticed(view.number))
        done.append("outer")

    @service.on(Noticed)
    async def inner(noticed: Noticed) -> None:
        done.append("inner")

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(PageViewed(1))
            await world.until(lambda: breaker.state == "open")
            bank.up = True
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert "closed" == breaker.state

    asyncio.run(scenario())
    assert ["inner", "outer"] == done


def test_a_dependency_that_hangs_is_counted_with_a_timeout_inside(opened: Opened) -> None:
    """The timeout of the registration comes from outside the breaker; its own `timeout` comes from inside."""
    breaker, bank, done = opening(), Bank(), set[int]()
    service = Service("billing")

    @service.on(PageViewed, retry=QUICK, middleware=[breaker, timeout(timedelta(milliseconds=20))])
    async def charge(view: PageViewed) -> None:
        await asyncio.sleep(0 if bank.up else 30)
        done.add(view.number)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(8)])
            await world.until(lambda: breaker.state == "open")
            bank.up = True
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert [] == await world.dead("shop.page", "billing")

    asyncio.run(scenario())
    assert set(range(8)) == done


def test_a_batch_that_is_refused_is_handled_later(opened: Opened) -> None:
    """A list is one call: refused while it is open, and nothing of it is lost or counted."""
    breaker, bank, done = opening(failures=2), Bank(), list[int]()
    service = Service("billing")

    @service.on(PageViewed, batch=5, retry=QUICK, middleware=[breaker])
    async def charge(views: list[PageViewed]) -> None:
        await bank.ask()
        done.extend(view.number for view in views)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(20)])
            await world.until(lambda: breaker.state == "open")
            bank.up = True
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert [] == await world.dead("shop.page", "billing")

    asyncio.run(scenario())
    assert list(range(20)) == sorted(done)


def test_a_handler_may_say_by_itself_that_a_dependency_is_down(opened: Opened) -> None:
    """`DependencyUnavailable` is nobody's failure, whoever raises it."""
    service, attempts = Service("billing"), list[int]()

    @service.on(PaymentTaken, retry=ONCE)
    async def book(payment: PaymentTaken, context: Context) -> None:
        attempts.append(context.attempt)
        if len(attempts) < 4:
            raise DependencyUnavailable("the ledger is in maintenance")

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(PaymentTaken("1"))
            await world.until(lambda: world.settled("shop.payment", "billing"))
            assert [] == await world.dead("shop.payment", "billing")

    asyncio.run(scenario())
    assert [1, 1, 1, 1] == attempts


@pytest.mark.parametrize(
    "make",
    [
        lambda: circuit_breaker(""),
        lambda: circuit_breaker("x", failures=0),
        lambda: circuit_breaker("x", window=timedelta(0)),
        lambda: circuit_breaker("x", reset_after=timedelta(0)),
        lambda: circuit_breaker("x", counts=()),
        lambda: circuit_breaker("x", counts=(ConnectionError, Reject)),
        lambda: circuit_breaker("x", counts="ConnectionError"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_be_are_refused(make: Callable[[], CircuitBreaker]) -> None:
    """At registration, with the breaker's name."""
    with pytest.raises(ConfigurationError, match="circuit_breaker"):
        make()


def test_another_event_loop_begins_with_a_closed_one() -> None:
    """A service that is run again in a process, as tests do, does not inherit the last run's outage."""
    breaker = opening(failures=1)
    middleware: Middleware = breaker

    async def fail_once() -> str:
        handle = middleware(fails)
        with pytest.raises(DependencyUnavailable, match="bank is down: ConnectionError"):
            await handle(
                PageViewed(1), Context(message=message(), attempt=1, unit=None, _publish=nowhere, resources={})
            )
        return breaker.state

    assert ["open", "open"] == [asyncio.run(fail_once()), asyncio.run(fail_once())]
    assert "closed" == breaker.state
    assert "circuit_breaker('bank': closed)" == repr(breaker)
