"""One delivery on its way through a process, and what came of running it."""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Sequence
from typing import Any

import msgspec

from tidewire.errors import AlreadyMarked, TransactionLost
from tidewire.model import DeadLetter, Delivery, Failure, Message, Outcome
from tidewire.rules.lanes import Key, State
from tidewire.runtime.context import Context
from tidewire.runtime.plan import Bound, Route

__all__ = ["Ran", "Together", "Work"]


class Work:
    """A delivery with what is known of it. Mutable, owned by one consumer.

    *todo*: the handlers that have not taken effect. *verdict*: given up before it ran (undecodable, unknown
    version …). *discarded*: an operator's note that nobody is to wait for it any more. *failure*: its failed
    attempts so far; *stored*: whether the store remembers something of it. *held_row*: the event id of its row among
    the held keys, to be freed when it is handled. *passed*: how many events had been settled when it was first held.
    *single*: it was in a batch that failed, so it runs in none. *started*: its start as a suspect was written down in
    this life. *ran*: it ran before in this life, and whether that took effect may not be known. *original*: the
    delivery with the bytes and headers that came, where *delivery* was unwrapped from them. *cancellable*: its handlers
    are running, so that a timeout may cancel them. *cut_off*: the membership ended while they ran, so that whatever
    they raise is no failure of theirs. *context*: what they were given last.
    """

    __slots__ = (
        "alone", "cancellable", "context", "cut_off", "delivery", "discarded", "failure", "gone", "held_row",
        "held_since", "key", "original", "outgoing", "passed", "ran", "retry_at", "route", "single", "started", "state",
        "stored", "timed_out", "todo", "verdict",
    )  # fmt: skip

    def __init__(self, delivery: Delivery, key: Key | None) -> None:
        self.delivery = delivery
        self.key = key
        self.alone = delivery.suspect
        self.gone = False
        self.state: State = "new"
        self.route: Route | None = None
        self.todo: Sequence[Bound] = ()
        self.verdict: DeadLetter | None = None
        self.discarded = False
        self.failure: Failure | None = None
        self.stored = False
        self.held_row = ""
        self.held_since = 0.0
        self.passed = 0
        self.retry_at = 0.0
        self.outgoing: Sequence[Message] = ()
        self.original = delivery
        self.single = False
        self.started = False
        self.ran = False
        self.cancellable = False
        self.cut_off = False
        self.context: Context[Any] | None = None
        self.timed_out = False


class Ran(msgspec.Struct, frozen=True, gc=False):
    """What running a work came to: the outcome is provisional until *durable* resolves (None: certain at once).

    *messages* are to be moved with the ack, where there is no store to hold them. *failed* names the handler
    whose failure decided the outcome.
    """

    outcome: Outcome
    durable: Awaitable[None] | None = None
    messages: Sequence[Message] = ()
    failed: Bound | None = None


class Together:
    """The commit that the works of a batch share: awaited once, answered to each of them in turn.

    A mark that turns out to exist undoes the whole batch, so that is the loss of its transaction, not one's success.
    """

    __slots__ = ("_answer", "_durable", "_known")

    def __init__(self, durable: Awaitable[None]) -> None:
        self._durable = durable
        self._known = False
        self._answer: Exception | None = None

    def __await__(self) -> Generator[Any, None, None]:
        if not self._known:
            try:
                yield from self._durable.__await__()
            except AlreadyMarked as error:
                self._answer = TransactionLost(f"one event of the batch had taken effect before: {error.message}")
            except Exception as error:
                self._answer = error
            self._known = True
        if self._answer is not None:
            raise self._answer
