"""The client library, where it must be held by its inside, and where its types say less than they could."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportUnknownLambdaType=false

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

from aiormq.abc import AbstractConnection, ConfirmationFrameType, DeliveredMessage
from aiormq.channel import Channel
from aiormq.connection import Connection, TransportFactory
from aiormq.exceptions import AMQPConnectionError
from pamqp import commands as spec
from pamqp.header import ContentHeader
from yarl import URL

from tidewire.errors import TransportRefused
from tidewire.transports.rabbitmq.settings import RabbitSettings

__all__ = ["Pipe", "end_of", "on_end", "opened"]

_FRAMES = 1_000


class Pipe(Channel):
    """A channel that calls whoever takes deliveries, confirms and returns at once, without a task for each."""

    def __init__(self, connection: AbstractConnection, number: int, *, confirms: bool) -> None:
        super().__init__(connection, number, publisher_confirms=confirms, frame_buffer=_FRAMES, on_return_raises=False)
        self.takers: dict[str, Callable[[DeliveredMessage], None]] = {}
        self.on_confirm: Callable[[int, bool, bool], None] = _nobody
        self.on_return: Callable[[DeliveredMessage], None] = _nothing

    async def give(
        self,
        queue: str,
        taker: Callable[[DeliveredMessage], None],
        *,
        tag: str,
        no_ack: bool = False,
        exclusive: bool = False,
    ) -> None:
        """Ask to be given what is in *queue*; *taker* is called for each."""
        self.takers[tag] = taker
        await self.basic_consume(queue, _no_task, no_ack=no_ack, exclusive=exclusive, consumer_tag=tag)

    async def _on_deliver_frame(self, frame: spec.Basic.Deliver) -> None:
        message = await self._whole(frame)
        taker = self.takers.get(frame.consumer_tag or "")
        if taker is not None:
            taker(message)

    async def _on_return_frame(self, frame: spec.Basic.Return) -> None:
        self.on_return(await self._whole(frame))

    async def _on_confirm_frame(self, frame: ConfirmationFrameType) -> None:
        multiple = not isinstance(frame, spec.Basic.Reject) and bool(frame.multiple)
        self.on_confirm(frame.delivery_tag or 0, multiple, isinstance(frame, spec.Basic.Ack))

    async def _whole(self, frame: spec.Basic.Deliver | spec.Basic.Return) -> DeliveredMessage:
        header = await self._get_frame()
        assert isinstance(header, ContentHeader), f"the broker sent {header!r} where the header of a message was due"
        return await self._read_content(frame, header)


async def _no_task(message: DeliveredMessage) -> None:
    """The library wants a callback, for which it would make a task; takers are called instead."""


def _nobody(tag: int, multiple: bool, stored: bool) -> None:
    """Nobody waits for a confirm."""


def _nothing(message: DeliveredMessage) -> None:
    """Nobody waits for a return."""


class _Socket(TransportFactory):
    """Opens a socket, and keeps its writer: who must not wait for a broker that stands still cuts it off by that."""

    def __init__(self, settings: RabbitSettings) -> None:
        self._context = settings.context()
        self.writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the socket."""
        try:
            reader, writer = await asyncio.open_connection(url.host, url.port, ssl=self._context, limit=1 << 18)
        except ssl.SSLError as error:
            raise TransportRefused(
                f"{url.host}:{url.port}: {error}", hint="check ca=, and that the broker's certificate names its host"
            ) from error
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self.writer = writer
        return reader, writer


async def opened(
    settings: RabbitSettings, server: tuple[str, int], *, name: str, heartbeat: int
) -> tuple[Connection, asyncio.StreamWriter]:
    """Connect to one server; return also what writes to its socket."""
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # what matters is raised, and told by ours
    socket = _Socket(settings)
    url = URL.build(
        scheme="amqp",
        user=settings.user,
        password=settings.password,
        host=server[0],
        port=server[1],
        query={"heartbeat": str(heartbeat), "name": name},
    )
    connection = Connection(url, transport_factory=socket)
    connection.vhost = settings.vhost
    connection.READER_CLOSE_TIMEOUT = 1  # seconds for a goodbye
    done = False
    try:
        await connection.connect()
        done = True
    finally:
        if not done and socket.writer is not None:
            socket.writer.transport.abort()
    assert socket.writer is not None, "it is connected"
    return connection, socket.writer


def end_of(thing: Connection | Channel) -> asyncio.Future[object]:
    """Return a future of the end of a connection or a channel; its error is of no interest to whoever waits."""
    ending: asyncio.Future[object] = thing.closing
    return ending


def on_end(thing: Connection | Channel, watcher: Callable[[], None]) -> None:
    """Call *watcher* when a connection or a channel has ended, whoever ended it."""

    def ended(ending: asyncio.Future[object]) -> None:
        if not ending.cancelled():
            ending.exception()  # which is told by what fails for it
        watcher()

    end_of(thing).add_done_callback(ended)
