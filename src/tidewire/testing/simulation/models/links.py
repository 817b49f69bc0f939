"""What lies between a client of a model and its server: requests on their way, answers that may be lost, and faults."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Generic, Literal, ParamSpec, Protocol, TypeVar

from tidewire.errors import TransportError, TransportUnavailable
from tidewire.model import Message
from tidewire.protocols import Clock, Transport

__all__ = ["Client", "Disconnected", "Link", "Refusal", "Server", "resolve"]

P = ParamSpec("P")
T = TypeVar("T")
TIMEOUT = 2.0
"""Seconds a client waits for an answer."""


class Disconnected(TransportUnavailable):
    """A request had no answer. *sent*: it may have been done, or may still be."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class Refusal(TransportError):
    """What a server answers when it does not do what it was asked; *code* is its broker's own word for it."""

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(f"{code}: {text}" if text else code)
        self.code = code


class Conditions(Protocol):
    """How it stands between one client and the server."""

    @property
    def away(self) -> bool:
        """Whether nothing gets through now, in either direction."""
        ...

    def delay(self) -> float:
        """Return how many seconds the next request or answer is on its way; 0 for next to nothing."""
        ...

    def strikes(self, kind: Literal["refused", "lost"]) -> bool:
        """Whether this request does not arrive (``refused``), or its answer does not (``lost``)."""
        ...


class _Calm:
    """Nothing goes wrong."""

    away = False

    def delay(self) -> float:
        """At once."""
        return 0.0

    def strikes(self, kind: Literal["refused", "lost"]) -> bool:
        """Never."""
        return False


CALM: Conditions = _Calm()


class Client(Transport, Protocol):
    """An adapter of a model, as one client has it."""

    async def close(self) -> None:
        """Refuse every call from now on; who is in a group has left it before."""
        ...


class Server:
    """What all models' servers have: a clock, clients, and switches for bad days.

    While *down* is true nobody connects. While *hung* is true requests arrive and wait. *refuse* sees each message
    that is to be stored and returns the reason why it is not.
    """

    def __init__(self, clock: Clock, *, message_bytes_max: int = 1 << 20) -> None:
        self.clock = clock
        self.message_bytes_max = message_bytes_max
        self.down = False
        self.hung = False
        self.refuse: Callable[[Message], str | None] | None = None
        self.links: list[Link] = []
        self.late: list[Callable[[], None]] = []

    def client(self, link: Link) -> Client:
        """Return the adapter for one client; it starts nothing before it is used.

        Raises:
            NotImplementedError: a model says how.
        """
        raise NotImplementedError

    @asynccontextmanager
    async def open(self, link: Link) -> AsyncGenerator[Client]:
        """Open the adapter, and close it on leaving."""
        client = self.client(link)
        try:
            yield client
        finally:
            await client.close()

    def repeat(self, draw: float) -> bool:
        """Hand something that is stored out once more, *draw* (0 to 1) chooses what; False if there is nothing."""
        return False

    def cramp(self) -> None:
        """Make the server's own bounds small, so that they are met."""

    def restart(self) -> None:
        """Die and start again: connections end; what is stored is there, what was only in memory is not."""
        self.cut()

    def cut(self) -> None:
        """End every connection; clients may connect again at once."""
        for link in self.links:
            link.cut()

    def hang(self) -> None:
        """Take requests and answer none, until `unhang`."""
        self.hung = True

    def unhang(self) -> None:
        """Go on, with what has arrived meanwhile first."""
        self.hung = False
        late, self.late = self.late, []
        for arrive in late:
            arrive()


class Link:
    """One client's line to its server. Requests arrive in the order they were made, answers too.

    A request that is on its way arrives even if its sender has died meanwhile.
    """

    def __init__(self, server: Server, conditions: Conditions = CALM, *, timeout: float = TIMEOUT) -> None:
        self._server = server
        self._conditions = conditions
        self._timeout = timeout
        self._cuts = 0
        self._arrives = self._answers = 0.0
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._frozen: asyncio.Future[None] | None = None
        self._severed = False
        server.links.append(self)

    def close(self) -> None:
        """Forget the line."""
        self._severed = True
        self._server.links.remove(self)

    def cut(self) -> None:
        """End the connection: whoever waits for an answer gets none. The next request connects again."""
        self._cuts += 1
        for future in list(self._waiting):
            resolve(future)

    def sever(self) -> None:
        """End it for good, as the death of the client does."""
        self._severed = True
        self.thaw()
        self.cut()

    def freeze(self) -> None:
        """Let nothing pass, in either direction, as when the client stands still."""
        if self._frozen is None:
            self._frozen = asyncio.get_running_loop().create_future()

    def thaw(self) -> None:
        """Go on."""
        frozen, self._frozen = self._frozen, None
        if frozen is not None:
            frozen.set_result(None)

    async def call(self, act: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Let the server do *act* and return its answer, or raise what it raised.

        Raises:
            Disconnected: there was no answer.
        """
        await self._thawed()
        conditions = self._conditions
        if self._severed or self._server.down or conditions.away or conditions.strikes("refused"):
            await asyncio.sleep(0)
            raise Disconnected("the server cannot be reached", sent=False)
        cuts = self._cuts
        request = _Request(lambda: act(*args, **options))
        loop = asyncio.get_running_loop()
        self._arrives = max(self._arrives, loop.time() + conditions.delay())
        on_its_way = self._arrives - loop.time()
        if on_its_way > 0:
            # In a context of nobody: the death of the sender does not stop what it has sent.
            loop.call_later(on_its_way, self._arrive, request, cuts, context=contextvars.Context())
        else:
            self._arrive(request, cuts)
        if request.done:
            await asyncio.sleep(0)
        else:
            await self._wait(request, self._timeout)
        return await self._heard(request, cuts)

    def _arrive(self, request: _Request[T], cuts: int) -> None:
        server = self._server
        if server.down or (self._cuts != cuts and not request.sent):
            return
        request.sent = True
        if server.hung:
            server.late.append(lambda: self._arrive(request, cuts))
            return
        request.do()

    async def _heard(self, request: _Request[T], cuts: int) -> T:
        """Wait for the answer to a request that was done, or was not."""
        conditions, loop = self._conditions, asyncio.get_running_loop()
        lost = conditions.strikes("lost")
        if request.done and not lost:
            self._answers = max(self._answers, loop.time() + conditions.delay())
            if self._answers > loop.time():
                await self._rest(self._answers - loop.time())
        elif request.done:
            await self._rest(self._timeout)
        await self._thawed()
        if lost or not request.done or self._cuts != cuts or self._severed or conditions.away:
            raise Disconnected("there was no answer", sent=True)
        return request.answer()

    async def _wait(self, request: _Request[T], longest: float) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        request.on_done = lambda: resolve(future)
        await self._until(future, longest)

    async def _rest(self, seconds: float) -> None:
        await self._until(asyncio.get_running_loop().create_future(), seconds)

    async def _until(self, future: asyncio.Future[None], longest: float) -> None:
        """Wait for *future*, for *longest* seconds, or until the connection is cut."""
        timer = asyncio.get_running_loop().call_later(longest, resolve, future)
        self._waiting[future] = None
        try:
            await future
        finally:
            timer.cancel()
            del self._waiting[future]

    async def _thawed(self) -> None:
        while self._frozen is not None:
            await asyncio.shield(self._frozen)


class _Request(Generic[T]):
    """One request: what is to be done, and what came of it."""

    def __init__(self, act: Callable[[], T]) -> None:
        self._act = act
        self._results: list[T] = []
        self._error: Exception | None = None
        self.sent = self.done = False
        self.on_done: Callable[[], None] = _nothing

    def do(self) -> None:
        """Do it, once; what it raises is for its sender."""
        try:
            self._results.append(self._act())
        except TransportError as error:  # what a server refuses; anything else is a defect
            self._error = error
        self.done = True
        self.on_done()

    def answer(self) -> T:
        """Return the answer, or raise it."""
        if self._error is not None:
            raise self._error
        return self._results[0]


def _nothing() -> None:
    """Nobody waits."""


def resolve(future: asyncio.Future[None]) -> None:
    """Wake whoever waits for *future*; it may have been woken before."""
    if not future.done():
        future.set_result(None)
