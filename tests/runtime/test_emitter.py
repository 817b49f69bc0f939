"""The plain in-process emitter."""

from __future__ import annotations

import asyncio

import pytest

from tidewire.runtime.emitter import Emitter


class Saved:
    """An object to emit."""


def test_listeners_are_called_in_the_order_of_registration() -> None:
    """`def` and `async def` alike, each with what was emitted."""
    emitter, heard = Emitter(), list[object]()

    @emitter.on("saved")
    def first(order: object) -> None:
        heard.append(("first", order))

    @emitter.on("saved")
    async def second(order: object) -> None:
        await asyncio.sleep(0)
        heard.append(("second", order))

    assert asyncio.run(emitter.emit("saved", 7))
    assert [("first", 7), ("second", 7)] == heard


def test_an_object_goes_to_the_listeners_of_its_class() -> None:
    """The class is the name, the object the argument."""
    emitter, heard = Emitter(), list[object]()
    emitter.on(Saved, heard.append)
    saved = Saved()

    asyncio.run(emitter.emit(saved))
    assert [saved] == heard


def test_once_is_called_once() -> None:
    """It is gone before it is called, so that emitting inside it does not call it again."""
    emitter, heard = Emitter(), list[object]()

    async def again(value: object) -> None:
        heard.append(value)
        await emitter.emit("tick", value)

    emitter.once("tick", again)
    asyncio.run(emitter.emit("tick", 1))
    assert [1] == heard
    assert not asyncio.run(emitter.emit("tick", 2))


def test_off_removes_one_registration() -> None:
    """The newest first; False when there is none left."""
    emitter, heard = Emitter(), list[object]()
    emitter.on("tick", heard.append)
    emitter.on("tick", heard.append)

    assert emitter.off("tick", heard.append) is False, "a bound method is a new object each time"
    listener = emitter.listeners("tick")[0]
    assert emitter.off("tick", listener)
    asyncio.run(emitter.emit("tick", 1))
    assert [1] == heard


def test_what_a_listener_raises_rises() -> None:
    """The caller of `emit` hears of it; later listeners are not called."""
    emitter, heard = Emitter(), list[object]()

    def fail(value: object) -> None:
        raise ValueError(value)

    emitter.on("tick", fail)
    emitter.on("tick", heard.append)
    with pytest.raises(ValueError, match="1"):
        asyncio.run(emitter.emit("tick", 1))
    assert [] == heard


def test_wait_returns_the_next_value() -> None:
    """A task can wait for an event, and leaves nothing behind."""

    async def scenario() -> object:
        emitter = Emitter()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(emitter.wait("tick"))
            await asyncio.sleep(0)
            await emitter.emit("tick", 5)
        assert [] == emitter.listeners("tick")
        return waiting.result()

    assert 5 == asyncio.run(scenario())
