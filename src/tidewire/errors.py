"""Everything tidewire raises, as one tree.

Each class says who can cure it: the *code* (a bug, or a handler's own word), the *setting*, or *time*::

    TidewireError
    ├── ConfigurationError        setting  a URL, a setting, an event class or a handler is not as it must be
    │   └── MissingExtra          setting  an optional dependency is not installed; the message names the extra
    ├── PublishError
    │   ├── PublishRejected       setting  certainly not stored; the reason says why
    │   └── PublishUnknown        time     may be stored; publish again with the same id
    ├── TransportError
    │   ├── TransportUnavailable  time     the broker cannot be reached or cannot write now; nothing was handed over
    │   ├── TransportRefused      setting  the broker or its file will not serve us until a person changes something
    │   └── TransportClosed       code     used after it was closed, or in a forked child
    ├── StoreError
    │   ├── StoreUnavailable      time     the database cannot be reached or cannot write now
    │   ├── StoreRefused          setting  the database will not serve us until a person changes something
    │   ├── AlreadyMarked         code     the inbox mark exists: another delivery of this event took effect
    │   ├── LaneFenced            time     another member owns the lane now; this unit must not commit
    │   ├── TransactionLost       time     the transaction this unit shared is gone; run the unit again, alone
    │   ├── TransactionAborted    code     a handler caught an error of the database and went on in its transaction
    │   ├── TransactionClosed     code     a statement came after its unit had ended
    │   └── TransactionControl    code     a handler tried to BEGIN, COMMIT or ROLLBACK by itself
    ├── DependencyUnavailable     time     something that the handler needs is down; the event waits, uncounted
    ├── DecodeError               code     bytes that are not the declared type; the path names the place
    └── HandlerVerdict                     what a handler raises to decide its event's fate
        ├── Reject                code     a dead letter at once
        └── RetryAfter            time     try again after the given delay

``str(error)`` is the message and, on its own line, ``hint:`` with the fix where there is one.
Messages never hold payloads or secrets.
"""

from __future__ import annotations

from datetime import timedelta

__all__ = [
    "AlreadyMarked",
    "ConfigurationError",
    "DecodeError",
    "DependencyUnavailable",
    "HandlerVerdict",
    "LaneFenced",
    "MissingExtra",
    "PublishError",
    "PublishRejected",
    "PublishUnknown",
    "Reject",
    "RetryAfter",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
    "TidewireError",
    "TransactionAborted",
    "TransactionClosed",
    "TransactionControl",
    "TransactionLost",
    "TransportClosed",
    "TransportError",
    "TransportRefused",
    "TransportUnavailable",
]


class TidewireError(Exception):
    """The root of the tree: a message that names the place, and a hint that names the fix."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class ConfigurationError(TidewireError):
    """A URL, a setting, an event class or a handler is not as it must be."""


class MissingExtra(ConfigurationError):
    """An optional dependency is not installed; the message names the extra."""


class PublishError(TidewireError):
    """An event was not confirmed; the subclass says whether it may be stored all the same.

    *event_id* is the id it had: publish again with it.
    """

    def __init__(self, message: str, *, event_id: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.event_id = event_id


class PublishRejected(PublishError):
    """The event is certainly not stored: the broker refused it."""


class PublishUnknown(PublishError):
    """The event may be stored. Publishing again with the same id is always right."""


class TransportError(TidewireError):
    """The broker did not do what it was asked."""


class TransportUnavailable(TransportError):
    """The broker cannot be reached, or cannot write now; none of the messages was handed over."""


class TransportRefused(TransportError):
    """The broker or its file will not serve us until a person changes something."""


class TransportClosed(TransportError):
    """The transport was used after it was closed, or in a forked child process."""


class StoreError(TidewireError):
    """The service's own database did not do what it was asked."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, or cannot write now."""


class StoreRefused(StoreError):
    """The database will not serve us until a person changes something."""


class AlreadyMarked(StoreError):
    """The inbox mark exists: another delivery of this event has already taken effect."""


class LaneFenced(StoreError):
    """Another member owns the lane now: this unit must not commit."""


class TransactionLost(StoreError):
    """The transaction that this unit shared is gone, unsaid by its handler; run the unit again, alone."""


class TransactionAborted(StoreError):
    """A handler caught an error of the database and went on: nothing of such a transaction can be kept."""


class TransactionClosed(StoreError):
    """A statement came after its unit had ended (a timed-out handler's thread, a kept ``context.tx``)."""


class TransactionControl(StoreError):
    """A handler tried to BEGIN, COMMIT, ROLLBACK or SAVEPOINT by itself; the unit does that."""


class DependencyUnavailable(TidewireError):
    """Something that a handler needs is down. Nobody's failure: no attempt is spent, the subscription pauses."""


class DecodeError(TidewireError):
    """Bytes that are not the declared type.

    *path* names the place inside the body, as msgspec writes it (``$.lines[0].quantity``), or is empty.
    """

    def __init__(self, message: str, *, path: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path


class HandlerVerdict(TidewireError):
    """What a handler raises to decide its event's fate itself."""


class Reject(HandlerVerdict):
    """Not worth a retry: the event becomes a dead letter at once, with this message as its reason."""


class RetryAfter(HandlerVerdict):
    """Try this event again after *delay*; counts as a failure towards the attempts the policy allows."""

    def __init__(self, delay: timedelta, message: str = "the handler asked for a retry") -> None:
        super().__init__(message)
        self.delay = delay
