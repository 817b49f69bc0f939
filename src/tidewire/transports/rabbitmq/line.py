"""One connection to the broker by the plain client: no reconnecting, and nothing that a cancel cuts in half."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from aiormq.connection import Connection

from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.kit.groups import first_error
from tidewire.kit.waits import happens
from tidewire.transports.rabbitmq.errors import FOREIGN, translated
from tidewire.transports.rabbitmq.library import Pipe, end_of, on_end, opened
from tidewire.transports.rabbitmq.settings import RabbitSettings

__all__ = ["Line", "Silent", "open_line"]

_GOODBYE = 0.25
_PATIENCE = 2.0
"""Seconds that a server has for itself before the next one is tried beside it."""
_OLDEST = (3, 10)
_LOST = (
    "where the broker answers otherwise it has lost this queue, as one that was new when it died: "
    "delete the queue, and start a service with --provision"
)
T = TypeVar("T")


class Silent(TransportUnavailable):
    """A connection is there, and nothing came by it: whether what was asked has happened, nobody knows."""


class Line:
    """An open connection."""

    def __init__(self, connection: Connection, writer: asyncio.StreamWriter, settings: RabbitSettings) -> None:
        self._connection = connection
        self._writer = writer
        self._settings = settings
        self._watchers: list[Callable[[], None]] = []
        self._numbers = 0
        on_end(connection, self._has_ended)

    @property
    def what(self) -> str:
        """The broker, for people."""
        return self._settings.what

    @property
    def is_open(self) -> bool:
        """Whether it is there, as far as is known."""
        return self._connection.is_opened and not self._writer.transport.is_closing()

    @property
    def version(self) -> tuple[int, ...]:
        """The broker's version."""
        text = self._connection.server_properties.get("version", "0")
        parts = str(text if isinstance(text, str) else "0").split("-")[0].split(".")
        return tuple(int(part) for part in parts if part.isdigit())

    @property
    def body_max(self) -> int:
        """How many bytes of a body fit into a frame."""
        return (self._connection.connection_tune.frame_max or 131_072) - 8

    def on_end(self, watcher: Callable[[], None]) -> None:
        """Call *watcher* when the connection is gone, whoever ended it."""
        self._watchers.append(watcher)

    def _has_ended(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()

    def write(self, data: bytes) -> None:
        """Send whole frames, at once and in order with all others that were written so."""
        if not self.is_open:
            raise TransportUnavailable(f"{self.what}: the connection is gone")
        self._writer.write(data)

    async def flushed(self) -> None:
        """Wait until there is room for more.

        Raises:
            TransportUnavailable: the connection is gone, or takes nothing any more.
        """
        if not self._writer.transport.get_write_buffer_size():
            return
        try:
            async with asyncio.timeout(self._settings.timeout):
                await self._writer.drain()
        except (TimeoutError, *FOREIGN) as error:
            self.cut()
            raise TransportUnavailable(f"{self.what}: it takes nothing any more") from error

    async def unblocked(self) -> None:
        """Wait while the broker says that it takes no publishes: an alarm of memory or disk.

        Raises:
            TransportUnavailable: it goes on for too long.
        """
        try:
            async with asyncio.timeout(self._settings.timeout):
                await self._connection.ready()
        except TimeoutError:
            raise TransportUnavailable(
                f"{self.what}: an alarm of memory or disk blocks whoever publishes",
                hint="the broker's log names the alarm; free memory or disk there",
            ) from None

    async def pipe(self, *, confirms: bool = False) -> Pipe:
        """Open a channel."""
        if not self.is_open:
            raise TransportUnavailable(f"{self.what}: the connection is gone")
        number = self._free()
        pipe = Pipe(self._connection, number, confirms=confirms)
        self._connection.channels[number] = pipe
        await self.ask(pipe.open())
        return pipe

    def _free(self) -> int:
        channels = self._connection.channels
        most = self._connection.connection_tune.channel_max or 65_535
        for _ in range(most):
            self._numbers = self._numbers % most + 1
            if self._numbers not in channels:
                return self._numbers
        raise TransportRefused(f"{self.what}: all {most} channels of a connection are in use")

    @asynccontextmanager
    async def a_pipe(self) -> AsyncGenerator[Pipe]:
        """Open a channel for the length of the block."""
        pipe = await self.pipe()
        try:
            yield pipe
        finally:
            await self.close_pipe(pipe)

    async def ask(self, question: Awaitable[T], *, queue: str = "") -> T:
        """Wait for the answer to a question, which is put to *queue* where that may be lost. A cancel leaves it on its
        way: it is answered, and nobody hears.

        Raises:
            TransportUnavailable: there is no answer, and the connection is gone now.
            TransportRefused: the broker refuses.
        """
        try:
            async with asyncio.timeout(self._settings.timeout):
                answers, error = await asyncio.shield(_answered(question))
        except TimeoutError:
            self.cut()
            asked = f" from the queue {queue}" if queue else ""
            raise Silent(f"{self.what}: no answer in time{asked}", hint=_LOST if queue else "") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise TransportUnavailable(f"{self.what}: the connection has ended") from None  # it cancels what waits
        if error is not None:
            raise translated(error, self.what) from error
        return answers[0]

    async def close_pipe(self, pipe: Pipe) -> None:
        """Close a channel, whatever is left in it; nothing happens if it is closed."""
        if not pipe.is_closed and self.is_open:
            await self.ask(pipe.close())

    def cut(self) -> None:
        """End the connection at once."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Say goodbye, and end the connection; one that does not answer is cut off."""
        ending = self._connection.close()
        try:
            async with asyncio.timeout(2 * _GOODBYE):
                await asyncio.shield(ending)
        except TimeoutError:
            self.cut()
        finally:
            with suppress(Exception):
                async with asyncio.timeout(_GOODBYE):
                    await asyncio.wait([end_of(self._connection)])
            await asyncio.sleep(0)


async def _answered(question: Awaitable[T]) -> tuple[list[T], BaseException | None]:
    """Return the answer, or what was raised instead: when nobody waits any more, that is nobody's."""
    try:
        return [await question], None
    except FOREIGN as error:
        return [], error


async def open_line(settings: RabbitSettings, name: str, *, heartbeat: int = 30) -> Line:
    """Connect to the first server that answers, in the order of the URL.

    While one keeps us waiting the next one is tried too: of a machine that is gone nobody says so.

    Raises:
        TransportUnavailable: none answers.
        TransportRefused: one does not let us in, or is too old.
    """
    race = _Race()
    ended = [asyncio.Event() for _ in settings.servers]

    async def run(place: int, server: tuple[str, int]) -> None:
        if place:
            await happens(ended[place - 1], place * _PATIENCE)
        try:
            race.finish(await _open(settings, server, name=name, heartbeat=heartbeat))
        except TransportUnavailable as error:
            race.last = error
        finally:
            ended[place].set()

    done = False
    try:
        async with asyncio.TaskGroup() as tasks:
            race.runners = [tasks.create_task(run(*one)) for one in enumerate(settings.servers)]
        done = True
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    finally:
        if not done:
            race.give_up()
    if race.line is not None:
        return race.line
    assert race.last is not None, "a URL names a server"
    raise race.last


class _Race:
    """Which of several connections is there first; others that come are cut off."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self.last: TransportUnavailable | None = None
        self.runners: list[asyncio.Task[None]] = []

    def finish(self, line: Line) -> None:
        """Have a connection; the others are waited for no more."""
        if self.line is not None:
            line.cut()
            return
        self.line = line
        for runner in self.runners:
            if runner is not asyncio.current_task():
                runner.cancel()

    def give_up(self) -> None:
        """Have none."""
        if self.line is not None:
            self.line.cut()


async def _open(settings: RabbitSettings, server: tuple[str, int], *, name: str, heartbeat: int) -> Line:
    """Connect to one server.

    Raises:
        TransportUnavailable: it does not answer.
        TransportRefused: it does not let us in, or is too old.
    """
    try:
        async with asyncio.timeout(settings.timeout):
            connection, writer = await opened(settings, server, name=name, heartbeat=heartbeat)
    except TimeoutError:
        raise TransportUnavailable(f"{settings.what}: no answer in time") from None
    except FOREIGN as error:
        raise translated(error, settings.what) from error
    line = Line(connection, writer, settings)
    if line.version < _OLDEST:
        await line.close()
        raise TransportRefused(f"{settings.what} is RabbitMQ {line.version}", hint="3.10 is the oldest that can")
    return line
