"""What a handler is given besides its event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic

import msgspec

from tidewire.errors import DecodeError
from tidewire.model import ZERO, Envelope, Message
from tidewire.protocols import Unit
from tidewire.rules.cloudevents import envelope_of

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Tx = TypeVar("Tx", default=Any)
else:
    from typing import TypeVar

    Tx = TypeVar("Tx")

__all__ = ["Context", "SyncContext"]

Publish = Callable[["Context[Any]", Any, timedelta, datetime | None], Awaitable[str]]
_logger = logging.getLogger("tidewire.handler")


class Context(msgspec.Struct, Generic[Tx], eq=False, kw_only=True):
    """One event's surroundings, fresh for each call of a handler. A batch handler's are those of the first of
    *messages*.

    *attempt* is 1 at the first try and grows with failures and with redeliveries after a crash. *resources* are
    the plain values that the service's lifespan yielded.
    """

    message: Message
    attempt: int
    unit: Unit | None
    resources: Mapping[str, Any]
    _publish: Publish
    _batch: Sequence[Message] = ()
    outgoing: list[Message] | tuple[()] = ()
    unreadable: DecodeError | None = None
    _envelope: Envelope | None = None
    _log: logging.LoggerAdapter[logging.Logger] | None = None
    _waited: float = 0.0
    _waits_since: float | None = None

    __repr__ = object.__repr__  # what a service holds is nobody's to read in a log

    @property
    def envelope(self) -> Envelope:
        """The event's context attributes."""
        if self._envelope is None:
            self._envelope = self._read(self.message)
        return self._envelope

    @property
    def envelopes(self) -> Sequence[Envelope]:
        """The context attributes of each event of a batch, in its order."""
        return [self._read(message) for message in self.messages]

    def _read(self, message: Message) -> Envelope:
        try:
            return envelope_of(message.headers)
        except DecodeError as error:
            self.unreadable = error
            raise

    @property
    def messages(self) -> Sequence[Message]:
        """The messages of a batch, or the one."""
        return self._batch or (self.message,)

    @property
    def several(self) -> bool:
        """Whether this is a batch of more than one."""
        return len(self._batch) > 1

    def send_along(self, message: Message) -> None:
        """Let *message* go with the unit, or the move, of this event."""
        if isinstance(self.outgoing, list):
            self.outgoing.append(message)
        else:
            self.outgoing = [message]

    @property
    def tx(self) -> Tx:
        """The transaction of the service's store, begun at its first use; what it writes, happens once.

        Raises:
            RuntimeError: the service runs without a store.
        """
        if self.unit is None:
            raise RuntimeError("context.tx needs a store: run the service with --store or TIDEWIRE_STORE")
        tx: Tx = self.unit.tx
        return tx

    async def publish(self, event: object, *, delay: timedelta = ZERO, at: datetime | None = None) -> str:
        """Publish an integration event with this unit, or run a domain event's handlers inside it, now.

        Returns the new event's id. An integration event leaves when, and only if, the unit commits, and not
        before *delay* has passed or the moment *at* has come; then it joins its key's order.

        Raises:
            ConfigurationError: not an event, a delay the service cannot keep, or a value that cannot travel.
        """
        return await self._publish(self, event, delay, at)

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Stop the clock of the handler's timeout: for a middleware that waits until it is this event's turn."""
        clock = asyncio.get_running_loop().time
        began = None if self._waits_since is not None else clock()
        self._waits_since = self._waits_since if began is None else began
        try:
            yield
        finally:
            if began is not None:
                self._waited, self._waits_since = self._waited + clock() - began, None

    def excused(self, now: float) -> float:
        """Return how many seconds up to *now*, by the loop's clock, the handler's timeout does not count."""
        return self._waited + (0.0 if self._waits_since is None else now - self._waits_since)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that adds the event's id, type and attempt to every record."""
        if self._log is None:
            headers = self.message.headers
            fields = {
                "event_id": self.message.id,
                "event_type": headers.get("ce-type", ""),
                "correlation_id": headers.get("ce-correlationid", ""),
                "attempt": self.attempt,
            }
            self._log = logging.LoggerAdapter(_logger, fields)
        return self._log


class SyncContext(Generic[Tx]):
    """The same for a ``def`` handler, which runs in a worker thread: nothing here is awaited."""

    __slots__ = ("_context", "_loop")

    def __init__(self, context: Context[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop

    @property
    def envelope(self) -> Envelope:
        """The event's context attributes."""
        return self._context.envelope

    @property
    def unit(self) -> Unit | None:
        """The unit that the handler runs in, or None in a service without a store."""
        return self._context.unit

    @property
    def attempt(self) -> int:
        """1 at the first try; see `Context`."""
        return self._context.attempt

    @property
    def resources(self) -> Mapping[str, Any]:
        """The plain values that the service's lifespan yielded."""
        return self._context.resources

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that adds the event's id, type and attempt to every record."""
        return self._context.log

    @property
    def tx(self) -> Tx:
        """The store's synchronous transaction, begun at its first use; see `Context.tx`."""
        unit = self._context.unit
        if unit is None:
            raise RuntimeError("context.tx needs a store: run the service with --store or TIDEWIRE_STORE")
        asyncio.run_coroutine_threadsafe(_begun(unit), self._loop).result()
        tx: Tx = unit.sync_tx
        return tx

    def publish(self, event: object, *, delay: timedelta = ZERO, at: datetime | None = None) -> str:
        """Publish with this unit; see `Context.publish`."""
        publishing = self._context.publish(event, delay=delay, at=at)
        return asyncio.run_coroutine_threadsafe(publishing, self._loop).result()


async def _begun(unit: Unit) -> None:
    await unit.begin()
