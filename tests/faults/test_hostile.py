"""Hostile messages and hostile handlers: no consumer stops, and each event is handled, skipped or a dead letter."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import hostile
import pytest
from hostile import KINDS, OPTIONS, OrderPlaced, assault, opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidewire import Options, Retry, Service, running
from tidewire.model import DeadChannel, GroupSpec, Message, Topic, TopicSpec

COUNT = 1_024


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_messages_stop_nothing(kind: str, tmp_path: Path) -> None:
    """Whatever stands in a message, it comes to an end that is counted, and a good event behind it is handled (R13)."""
    seed = random.randrange(1 << 32)
    done = asyncio.run(assault(kind, seed=seed, count=COUNT, directory=tmp_path))
    assert [] == done.violations
    assert done.figures["hostile messages"] > COUNT // 2
    assert done.figures["dead_lettered"] > COUNT // 10
    assert done.figures["processed"] > COUNT // 20


TEXTS = st.text(max_size=40)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=st.lists(
        st.builds(
            lambda event_id, key, headers, body: Message(Topic("shop.order"), event_id, "test", key, headers, body),
            TEXTS,
            st.none() | TEXTS,
            st.dictionaries(
                st.sampled_from(["ce-type", "ce-id", "ce-schemaversion", "content-type", "tw-failure"]) | TEXTS,
                st.sampled_from(["shop.order.placed", "1", "application/cloudevents+json"]) | TEXTS,
            ),
            st.binary(max_size=200) | st.from_regex(rb'\{"order_id":"[a-z]*","total":"[0-9.e]*"\}', fullmatch=True),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_any_message_comes_to_its_end(messages: list[Message]) -> None:
    """A property: for any texts and bytes, what the broker stored is settled, and what was given up has its reason."""

    async def scenario() -> None:
        async with opened("memory", Path()) as (transport, store):
            await transport.provision(
                [TopicSpec(name, lanes=4) for name in hostile.TOPICS],
                [GroupSpec(hostile.GROUP, list(hostile.TOPICS))],
            )
            await transport.publish(messages)
            counting = hostile.Counting()
            parts = hostile.Parts(observer=counting)
            service = hostile.billing(store=True)
            async with running(service, transport=transport, store=store, options=OPTIONS, parts=parts):
                async with asyncio.timeout(20):
                    stats = await transport.stats("shop.order", hostile.GROUP)
                    while stats.ready or stats.in_flight:
                        await asyncio.sleep(0)
                        stats = await transport.stats("shop.order", hostile.GROUP)
            for letter in await transport.browse(DeadChannel("shop.order", hostile.GROUP)):
                assert letter.message.headers["dl-reason"]

    asyncio.run(scenario())


class Odd(BaseException):
    """What some libraries end a task with."""


class Mute(Exception):
    """An error that fails when it is asked what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


RAISED: list[Callable[[], BaseException]] = [
    lambda: Exception(),
    lambda: RecursionError("deep"),
    lambda: MemoryError(),
    lambda: SystemExit(3),
    lambda: asyncio.CancelledError(),
    lambda: TimeoutError("late"),
    lambda: StopIteration(1),
    lambda: StopAsyncIteration(),
    lambda: RuntimeError(Odd()),
    lambda: Odd("odd"),
    lambda: Mute(),
    lambda: BaseExceptionGroup("several", [Odd(), ValueError()]),
    lambda: ExceptionGroup("several", [ValueError("\ud800")]),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
    lambda: OSError(28, "No space left on device", "\udcff"),
    lambda: ValueError("x" * 1_000_000),
    lambda: type("Ünerwartet" * 100, (Exception,), {})("named"),
    lambda: AssertionError(object()),
    lambda: KeyError("\0"),
    lambda: BrokenPipeError(),
]


@pytest.mark.parametrize("place", ["async", "thread"])
def test_whatever_a_handler_raises_is_that_events_failure(place: str, tmp_path: Path) -> None:
    """Twenty kinds of errors, those that are no `Exception` too: each event becomes a dead letter, the next one
    is handled, and the service runs on (AS6)."""
    service, seen = Service("billing", concurrency=4), list[str]()
    retry = Retry(attempts=2, first_delay=timedelta(milliseconds=1))

    def act(order: OrderPlaced) -> None:
        seen.append(order.order_id)
        if order.number >= 0:
            raise RAISED[order.number]()

    if place == "async":

        @service.on(OrderPlaced, on_dead_letter="continue", retry=retry)
        async def take(order: OrderPlaced) -> None:
            act(order)

    else:

        @service.on(OrderPlaced, on_dead_letter="continue", retry=retry)
        def take_in_thread(order: OrderPlaced) -> None:
            act(order)

    async def scenario() -> None:
        async with opened("sqlite", tmp_path) as (transport, store):
            options = Options(lease=timedelta(seconds=20), lanes=2)
            async with running(service, transport=transport, store=store, options=options) as app:
                for number in range(len(RAISED)):
                    await app.publisher.publish(OrderPlaced(f"o{number}", 1, number))
                await app.publisher.publish(OrderPlaced("good", 1, -1))
                async with asyncio.timeout(30):
                    dead = 0
                    while dead < len(RAISED) or "good" not in seen:
                        await asyncio.sleep(0.01)
                        dead = (await transport.stats("shop.order", "billing")).dead or 0
                assert app.ready
            assert {f"o{number}" for number in range(len(RAISED))} == set(seen) - {"good"}
            letters = await transport.browse(DeadChannel("shop.order", "billing"))
            assert {"exhausted"} == {letter.message.headers["dl-reason"] for letter in letters}

    asyncio.run(scenario())
