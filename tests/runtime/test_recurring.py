"""Recurring runs: once for each due time whatever the number of processes, kept over restarts, in the unit."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from runtime_doubles import Proxy
from runtime_world import Opened, PaymentTaken, World

from tidewire import ConfigurationError, Context, Every, Retry, Service
from tidewire.clock import SystemClock
from tidewire.runtime.parts import Parts
from tidewire.runtime.serve import Running, running

OFTEN = Every(timedelta(milliseconds=50))
QUICK = Retry(first_delay=timedelta(milliseconds=5), factor=1.0)


class AheadBy(SystemClock):
    """A wall clock that is ahead, for services that come back after days."""

    def __init__(self, ahead: timedelta) -> None:
        self._ahead = ahead

    def now_us(self) -> int:
        return super().now_us() + self._ahead // timedelta(microseconds=1)


@asynccontextmanager
async def run_later(service: Service, world: World, ahead: timedelta) -> AsyncIterator[Running]:
    """Run *service* as if *ahead* had passed since."""
    parts = Parts(observer=world.observer, clock=AheadBy(ahead))
    async with running(
        service, transport=world.transport, store=world.store, options=world.options, parts=parts
    ) as app:
        yield app


def test_each_due_time_happens_once_in_all_processes_together(opened: Opened) -> None:
    """Four processes share a store: no due time happens twice, none is left out, and the event goes out once."""
    service, seen, paid = Service("reports"), Counter[datetime](), list[str]()

    @service.recur(OFTEN, missed="all")
    async def report(due: datetime, context: Context) -> PaymentTaken:
        assert context.envelope.subject == "report"
        seen[due] += 1
        return PaymentTaken(due.isoformat())

    @service.on(PaymentTaken)
    async def take(payment: PaymentTaken) -> None:
        paid.append(payment.order_id)

    async def scenario() -> None:
        async with opened() as world, AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(world.running(service))
            await world.until(lambda: len(paid) >= 10)

    asyncio.run(scenario())
    dues = sorted(seen)
    assert {1} == set(seen.values())
    assert {timedelta(milliseconds=50)} == {later - due for due, later in itertools.pairwise(dues)}
    assert len(paid) == len(set(paid))
    assert {due.isoformat() for due in dues} >= set(paid)


@pytest.mark.parametrize(("missed", "runs"), [("latest", 1), ("skip", 0), ("all", 3)])
def test_what_was_missed_while_nothing_ran(opened: Opened, missed: Any, runs: int) -> None:
    """The store remembers when the next run is due; the policy decides about what came meanwhile."""
    service, seen = Service("reports"), list[datetime]()
    start = datetime.now(UTC) + timedelta(hours=1)

    @service.recur(Every(timedelta(hours=24), start=start), missed=missed)
    def report(due: datetime) -> None:
        seen.append(due)

    async def scenario() -> None:
        async with opened() as world:
            claim, planned = world.store.timetable.claim, asyncio.Event()

            async def noted(*asked: Any, **named: Any) -> Any:
                found = await claim(*asked, **named)
                planned.set()
                return found

            world.store = Proxy(world.store, timetable=Proxy(world.store.timetable, claim=noted))
            async with world.running(service):
                await planned.wait()
            assert [] == seen
            async with run_later(service, world, timedelta(hours=52)):
                await world.until(lambda: len(seen) >= runs)
                await asyncio.sleep(0.3)  # and no other run

    asyncio.run(scenario())
    assert runs == len(seen)
    if missed == "latest":
        assert [start + timedelta(hours=48)] == seen
    if missed == "all":
        assert [start, start + timedelta(hours=24), start + timedelta(hours=48)] == seen


def test_a_run_that_fails_leaves_nothing_and_is_tried_again(opened: Opened) -> None:
    """Its unit is rolled back: what it published is not out, and the same due time comes again."""
    service, dues, paid = Service("reports"), list[tuple[datetime, int]](), list[str]()

    @service.recur(Every(timedelta(milliseconds=200)), missed="all", retry=QUICK)
    async def report(due: datetime, context: Context) -> None:
        dues.append((due, context.attempt))
        await context.publish(PaymentTaken(f"{due.isoformat()} {context.attempt}"))
        if context.attempt < 3:
            raise RuntimeError("not yet")

    @service.on(PaymentTaken)
    async def take(payment: PaymentTaken) -> None:
        paid.append(payment.order_id)

    async def scenario() -> None:
        async with opened() as world, world.running(service):
            await world.until(lambda: len(paid) >= 2)

    asyncio.run(scenario())
    first = dues[0][0]
    assert [(first, 1), (first, 2), (first, 3)] == dues[:3]
    assert all(text.endswith(" 3") for text in paid)


def test_a_crash_in_the_middle_is_made_good_by_another_process(opened: Opened) -> None:
    """A run whose process vanishes is not lost: when its lease ends, somebody else runs the same due time."""
    service, seen = Service("reports"), list[datetime]()

    @service.recur(Every(timedelta(milliseconds=100)), timeout=timedelta(seconds=5), missed="all")
    async def report(due: datetime) -> None:
        seen.append(due)

    async def scenario() -> None:
        async with opened() as world:
            now = world.store.timetable
            clock = SystemClock()
            due, mine = await now.claim(
                "reports.report",
                Every(timedelta(milliseconds=100)).text,
                first=clock.now_us(),
                now=clock.now_us(),
                owner="a process that dies",
                lease=timedelta(milliseconds=600),
            )
            assert mine
            started = asyncio.get_running_loop().time()
            async with world.running(service):
                await world.until(lambda: bool(seen))
            assert asyncio.get_running_loop().time() - started > 0.4
            assert due == int(seen[0].timestamp() * 1e6 + 0.5)

    asyncio.run(scenario())


def test_a_recurring_run_needs_a_store(opened: Opened) -> None:
    """Nothing else remembers when it is due."""
    service = Service("reports")
    service.recur(OFTEN)(_nothing)

    async def scenario() -> None:
        async with opened() as world:
            with pytest.raises(ConfigurationError, match="need a store"):
                async with world.running(service, store=False):
                    pass

    asyncio.run(scenario())


def _nothing(due: datetime) -> None: ...


def _three(due: datetime, context: Context, more: int) -> None: ...


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda service: service.recur(OFTEN)(_three), "takes"),
        (lambda service: [service.recur(OFTEN)(_nothing) for _ in range(2)], "two recurring runs"),
        (lambda service: service.recur(OFTEN, timeout=timedelta(0))(_nothing), "above zero"),
    ],
)
def test_a_mistake_is_named_when_it_is_written(register: Any, message: str) -> None:
    """Shape, name and bounds are checked at registration."""
    with pytest.raises(ConfigurationError, match=message):
        register(Service("reports"))
