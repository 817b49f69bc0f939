"""Section M: lifecycle."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

import msgspec

from tidewire.errors import TransportClosed
from tidewire.testing.transports.bench import Bench, ids, raises


async def test_close_is_idempotent_and_bounded_by_grace(bench: Bench) -> None:
    """CF-117: leaving with unsettled deliveries takes the grace and no longer; afterwards all is refused, typed."""
    await bench.provision()
    await bench.publish(bench.messages(3))
    loop = asyncio.get_running_loop()
    wanted = msgspec.structs.replace(bench.subscription(), grace=timedelta(milliseconds=300))
    async with bench.site.open() as transport:
        async with bench.member(subscription=wanted, transport=transport) as reader:
            await reader.take(3)
            start = loop.time()
        took = loop.time() - start
        assert 0.2 <= took <= 1.3, f"left after {took} s"
        with raises(TransportClosed):
            await reader.receiver.receive(1, timedelta(0))
    for _ in range(2):
        with raises(TransportClosed):
            await transport.publish(bench.messages(1))
    with raises(TransportClosed):
        await transport.provision([], [])
    with raises(TransportClosed):
        async with transport.subscribe(bench.subscription()):
            pass


async def test_leaving_under_cancellation_gives_back_at_once(bench: Bench) -> None:
    """CF-117: a member that is cancelled while it waits for its grace gives back what it has, uncounted."""
    await bench.provision()
    messages = bench.messages(3)
    await bench.publish(messages)
    taken = asyncio.Event()
    wanted = msgspec.structs.replace(bench.subscription(), grace=timedelta(seconds=30))

    async def life() -> None:
        async with bench.member(subscription=wanted) as reader:
            await reader.take(3)
            taken.set()

    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        one = tasks.create_task(life())
        await taken.wait()
        await asyncio.sleep(0.05)
        start = loop.time()
        one.cancel()
    assert loop.time() - start < 2.0
    async with bench.member() as reader:
        found = await reader.consume(3, within=3.0)
    assert ids(messages) == ids(found)
    assert {(1, False)} == {(one.attempt, one.suspect) for one in found}


async def test_two_event_loops_two_threads(bench: Bench) -> None:
    """CF-119: transports on two event loops in two threads do not disturb each other."""
    await bench.provision()

    async def elsewhere() -> None:
        async with AsyncExitStack() as stack:
            site = bench.site.elsewhere()
            away = Bench(site, await stack.enter_async_context(site.open()), stack)
            await away.provision()
            await away.publish(away.messages(50, keys=["a", "b"]))
            async with away.member() as reader:
                await reader.consume(50)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
        await bench.publish(bench.messages(50, keys=["a", "b"]))
        async with bench.member() as reader:
            await reader.consume(50)


async def test_fork_safety_typed_error(bench: Bench) -> None:
    """CF-120: in a forked child the transport and its receivers refuse to work, and the parent works on."""
    if not hasattr(os, "fork"):
        return
    await bench.provision()
    await bench.publish(bench.messages(2))
    async with bench.member() as reader:
        found = await reader.take(1)
        attempts: list[Callable[[], Coroutine[object, None, object]]] = [
            lambda: bench.transport.publish(bench.messages(1)),
            lambda: reader.receiver.receive(1, timedelta(0)),
            lambda: reader.receiver.settle(ack=found),
        ]
        for attempt in attempts:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is the point
                child = os.fork()
            if child == 0:
                verdict = 1
                try:
                    attempt().send(None)  # no event loop may be touched here
                except TransportClosed:
                    verdict = 0
                finally:
                    os._exit(verdict)
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222  # it ends at once
            assert 0 == os.waitstatus_to_exitcode(status), "the child was not refused with TransportClosed"
        await reader.ack(found)
        await reader.consume(1)


async def test_no_task_thread_fd_leak(bench: Bench) -> None:
    """CF-121: fifty clients that open, join, work and close leave no thread and no file behind."""
    await bench.provision()
    await _live(bench)
    threads, files = threading.active_count(), _files()
    for _ in range(50):
        await _live(bench)
    # The event loop's own pool of threads may grow; a leak per client would be fifty.
    assert threading.active_count() - threads < 10
    assert _files() - files < 10


async def _live(bench: Bench) -> None:
    async with bench.site.open() as transport:
        await transport.publish(bench.messages(1))
        async with bench.member(transport=transport) as reader:
            await reader.consume(1)


def _files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


async def test_close_while_receiving_ends_the_receive(bench: Bench) -> None:
    """CF-117: a receive that is outstanding when its member leaves ends by itself."""
    await bench.provision()

    async def listen(receive: asyncio.Event) -> None:
        receive.set()
        with suppress(TransportClosed):
            await reader.receiver.receive(10, timedelta(seconds=30))

    async with asyncio.timeout(5.0), asyncio.TaskGroup() as tasks:
        started = asyncio.Event()
        async with bench.member() as reader:
            await reader.until_owner()
            tasks.create_task(listen(started))
            await started.wait()
            await asyncio.sleep(0.05)
