"""Whose turn it is, to the moment: on a clock that jumps, calls are cancelled just before, at and after their turn."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

from runtime_world import PageViewed

from tidewire import Context, Middleware
from tidewire.middleware import concurrency_limit, rate_limit
from tidewire.model import Message, Topic

JUST = 1e-10  # less than the loop's resolution: two such timers fire in one turn of the loop


class Jumping(selectors.SelectSelector):
    """Never blocks: waiting for a timer moves the clock to it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += max(timeout or 0.0, 0.0)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop on its selector's clock."""

    def __init__(self) -> None:
        self.selector = Jumping()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


class Calls:
    """Calls through one middleware, each in a task by its name, with the time at which its handler began."""

    def __init__(self, middleware: Middleware) -> None:
        self.began: dict[str, float] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.after: dict[str, Callable[[], object]] = {}
        self.loop = asyncio.get_running_loop()
        self._call = middleware(self._handle)

    async def _handle(self, name: str, context: Context) -> None:
        self.began[name] = self.loop.time()

    async def _one(self, name: str) -> None:
        message = Message(Topic("shop.page"), name, "test", None, {}, b"")
        await self._call(name, Context(message=message, attempt=1, unit=None, _publish=nowhere, resources={}))
        self.after.get(name, int)()

    def begin(self, *names: str) -> None:
        for name in names:
            self.tasks[name] = self.loop.create_task(self._one(name))

    def cancel_at(self, when: float, name: str) -> None:
        self.loop.call_at(when, lambda: self.tasks[name].cancel())

    async def ended(self) -> dict[str, float]:
        """Wait for all and return when each began."""
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        return self.began


async def nowhere(*publication: object) -> str:
    raise AssertionError(publication)


def on_a_jumping_clock(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(scenario())


def test_tokens_come_one_by_one_to_who_waits_longest() -> None:
    """A burst of two at once, then one a second, in the order of coming."""

    async def scenario() -> None:
        calls = Calls(rate_limit(1, burst=2))
        calls.begin("a", "b", "c", "d", "e")
        assert {"a": 0, "b": 0, "c": 1, "d": 2, "e": 3} == await calls.ended()

    on_a_jumping_clock(scenario)


def test_who_is_cancelled_while_waiting_costs_the_others_nothing() -> None:
    """Before its turn, in the moment of it, and just after it was granted: the next one has its token."""
    for when in (0.5, 1.0, 1.0 + JUST):

        async def scenario(when: float = when) -> None:
            limit = rate_limit(1)
            calls = Calls(limit)
            calls.begin("a", "cut", "b", "c")
            calls.cancel_at(when, "cut")
            assert {"a": 0, "b": 1, "c": 2} == await calls.ended()
            assert 0 == limit.waiting

        on_a_jumping_clock(scenario)


def test_many_that_are_cancelled_leave_no_debt() -> None:
    """A stop cuts off a long queue: the next token comes when it would have come for the first of it."""

    async def scenario() -> None:
        limit = rate_limit(1)
        calls = Calls(limit)
        names = [f"cut {number}" for number in range(60)]
        calls.begin("a", *names)
        for name in names:
            calls.cancel_at(0.5, name)
        await calls.ended()
        assert 0 == limit.waiting
        calls.begin("b")
        assert {"a": 0, "b": 1} == await calls.ended()

    on_a_jumping_clock(scenario)


def test_a_late_timer_lets_nobody_overtake() -> None:
    """A call that comes when a token is there already, but not yet given out, waits behind those who came before."""

    async def scenario() -> None:
        calls = Calls(rate_limit(1))
        calls.begin("a", "b")
        await asyncio.sleep(0.5)
        calls.loop.selector.now = 1.2  # type: ignore[attr-defined]
        calls.begin("c")
        began = await calls.ended()
        assert ["a", "b", "c"] == list(began)
        assert began["c"] - began["b"] >= 1

    on_a_jumping_clock(scenario)


def test_a_place_that_comes_in_the_moment_of_cancellation_goes_on_to_the_next() -> None:
    """Cancelled before its turn, or when the place has just been handed to it: nobody waits behind it for ever."""
    for granted in (True, False):

        async def scenario(granted: bool = granted) -> None:
            limit = concurrency_limit(1, key=lambda name: "one")
            calls = Calls(pausing(limit))
            calls.begin("a", "cut", "b")
            if granted:
                calls.after["a"] = lambda: calls.tasks["cut"].cancel()
            else:
                calls.cancel_at(0.5, "cut")
            assert ["a", "b"] == list(await calls.ended())
            assert (0, 0, 0) == (limit.running, limit.waiting, limit.values)

        on_a_jumping_clock(scenario)


def pausing(middleware: Middleware) -> Middleware:
    """Return *middleware* around handlers that take a second each."""

    def wrap(handle: Any) -> Any:
        async def slow(event: Any, context: Context) -> Any:
            await handle(event, context)
            await asyncio.sleep(1)

        return middleware(slow)

    return wrap


def test_a_new_call_does_not_overtake_those_who_wait() -> None:
    """A place that is free for a moment belongs to the queue."""

    async def scenario() -> None:
        calls = Calls(pausing(concurrency_limit(1)))
        calls.begin("a", "b")
        calls.after["a"] = lambda: calls.begin("c")
        await calls.tasks["a"]
        assert ["a", "b", "c"] == list(await calls.ended())

    on_a_jumping_clock(scenario)


def test_an_event_is_known_by_its_class() -> None:
    """The middleware passes on what it was given, and what the handler returned."""

    async def scenario() -> None:
        async def handle(event: PageViewed, context: Context) -> int:
            return event.number

        for middleware in (rate_limit(1), concurrency_limit(1)):
            call = middleware(handle)
            message = Message(Topic("shop.page"), "1", "test", None, {}, b"")
            context = Context[Any](message=message, attempt=1, unit=None, _publish=nowhere, resources={})
            assert 7 == await call(PageViewed(7), context)

    on_a_jumping_clock(scenario)
