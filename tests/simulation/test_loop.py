"""The loop of a simulation: time jumps, order is drawn, and the dead do nothing any more."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tidewire.testing.simulation import Deadlock, Process, SimLoop, current_process


def told(main: Callable[[SimLoop, list[str]], Coroutine[Any, Any, None]], seed: int = 1) -> str:
    """Run *main* on a loop of its own in a child, which ends without a destructor, and return what it noted."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        notes: list[str] = []
        try:
            loop = SimLoop(random.Random(seed))
            loop.run_until_complete(main(loop, notes))
        except BaseException as error:
            notes.append(f"raised {error!r}")
        os.write(write, "\n".join(notes).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


async def steps(notes: list[str], name: str) -> None:
    """Take three steps, a second apart, and say goodbye."""
    try:
        for number in range(3):
            notes.append(f"{name}{number}")
            await asyncio.sleep(1)
    finally:
        notes.append(f"{name} goodbye")


def test_years_pass_in_a_moment() -> None:
    """Time jumps to the next timer; nobody waits."""

    async def main(loop: SimLoop, notes: list[str]) -> None:
        await asyncio.sleep(3 * 365 * 86_400)
        notes.append(str(round(loop.time())))

    assert "94608000" == told(main)


def test_nothing_of_a_killed_process_runs() -> None:
    """After a kill no step, no timer, no ``finally`` runs, even when somebody answers the dead."""

    async def main(loop: SimLoop, notes: list[str]) -> None:
        answer: asyncio.Future[None] = loop.create_future()

        @asynccontextmanager
        async def guarded() -> AsyncIterator[None]:
            try:
                yield
            finally:
                notes.append("finally")

        async def body() -> None:
            async with guarded(), asyncio.TaskGroup() as tasks:
                tasks.create_task(steps(notes, "a"))
                loop.call_later(2, notes.append, "timer")
                await answer
                notes.append("answered")

        process = Process(loop, "one")
        process.start(body())
        await asyncio.sleep(1.5)
        process.kill()
        answer.set_result(None)
        await asyncio.sleep(10)

    assert "a0\na1" == told(main)


def test_a_paused_process_catches_up() -> None:
    """What was due while a process stood still happens when it goes on; time went on without it."""

    async def main(loop: SimLoop, notes: list[str]) -> None:
        process = Process(loop, "one")
        process.start(steps(notes, "a"))
        await asyncio.sleep(0.5)
        process.pause()
        await asyncio.sleep(100)
        notes.append("still")
        process.resume()
        await asyncio.sleep(10)

    assert "a0\nstill\na1\na2\na goodbye" == told(main)


def test_who_dies_while_it_stands_still_does_not_go_on() -> None:
    """A process that lost its power while it was paused is dead: nobody hears of it, and nothing of it runs."""

    async def main(loop: SimLoop, notes: list[str]) -> None:
        process = Process(loop, "one")
        process.on_pause.append(lambda paused: notes.append("stands" if paused else "goes on"))
        process.start(steps(notes, "a"))
        await asyncio.sleep(0.5)
        process.pause()
        process.kill()
        process.resume()
        await asyncio.sleep(10)

    assert "a0\nstands" == told(main)


def test_a_seed_repeats_the_order_of_steps() -> None:
    """The same seed takes the same steps; another one takes others."""

    async def main(loop: SimLoop, notes: list[str]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for name in "abcdef":
                tasks.create_task(steps(notes, name))

    assert told(main, 1) == told(main, 1)
    assert told(main, 1) != told(main, 2)


def test_work_for_a_thread_is_done_in_order() -> None:
    """`run_in_executor` and `to_thread` do their work in the order it was given, one at a time, a little later."""

    async def main(loop: SimLoop, notes: list[str]) -> None:
        jobs = [loop.run_in_executor(None, notes.append, str(number)) for number in range(5)]
        assert [] == notes
        await asyncio.gather(*jobs)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)

    assert [*"01234"] == told(main).split()


def test_it_dies_at_the_point_it_is_told() -> None:
    """Every step of a process is a point, and a process can die at each."""

    async def main(loop: SimLoop, notes: list[str]) -> None:
        loop.crash_at = 2
        loop.on_crash = lambda process: (notes.append(f"dies {process.name}"), process.kill())[0]
        Process(loop, "one").start(steps(notes, "a"))
        await asyncio.sleep(10)

    assert "a0\ndies one" == told(main)


def test_a_timer_that_goes_off_has_come() -> None:
    """However little was left to wait, and whatever is ready: who waits for the rest of a time finds none left."""

    async def main(loop: SimLoop, notes: list[str]) -> None:
        end, rounds = loop.time() + 1e-9, 0
        while loop.time() < end and rounds < 100:
            busy = loop.create_task(steps([], "busy"))
            await asyncio.sleep(end - loop.time())
            busy.cancel()
            rounds += 1
        notes.append(f"{rounds} rounds")

    assert "1 rounds" == told(main)


def test_a_deadlock_is_found() -> None:
    """Where everybody waits and no timer is set, the simulation says so."""

    async def main(loop: SimLoop, notes: list[str]) -> None:
        await loop.create_future()

    assert told(main).startswith(f"raised {Deadlock.__name__}")


def test_sockets_are_refused() -> None:
    """Nothing in a simulation reaches the network."""

    async def main(loop: SimLoop, notes: list[str]) -> None:
        one, other = socket.socketpair()
        try:
            with pytest.raises(NotImplementedError):
                loop.add_reader(one.fileno(), lambda: None)
        finally:
            one.close()
            other.close()
        notes.append("refused")

    assert "refused" == told(main)


def test_a_process_knows_itself() -> None:
    """What runs in a process can ask which; the driver is in none."""

    async def main(loop: SimLoop, notes: list[str]) -> None:
        async def body() -> None:
            process = current_process()
            notes.append(process.name if process else "none")

        Process(loop, "one").start(body())
        await asyncio.sleep(1)
        notes.append(str(current_process()))

    assert "one\nNone" == told(main)
