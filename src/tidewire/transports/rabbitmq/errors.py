"""What the client library says, as what tidewire raises: one table."""

from __future__ import annotations

import asyncio

import aiormq.exceptions as library
from pamqp.exceptions import PAMQPException

from tidewire.errors import TransportError, TransportRefused, TransportUnavailable

__all__ = ["FOREIGN", "TABLE", "translated"]

_VHOST = "is there such a vhost, and may the user use it?"
TABLE: dict[type[BaseException], tuple[type[TransportError], str]] = {
    library.ProbableAuthenticationError: (TransportRefused, "the broker does not accept the user or the password"),
    library.AuthenticationError: (TransportRefused, "the broker does not offer the mechanism PLAIN"),
    library.IncompatibleProtocolError: (TransportRefused, "what listens there does not speak AMQP 0-9-1"),
    library.ProtocolSyntaxError: (TransportRefused, "what listens there does not speak AMQP 0-9-1"),
    library.InvalidFrameError: (TransportUnavailable, ""),
    library.ConnectionNotAllowed: (TransportRefused, _VHOST),
    library.ConnectionNotImplemented: (TransportRefused, "the broker lacks what was asked: RabbitMQ 3.10 or newer?"),
    library.ConnectionResourceError: (TransportUnavailable, "the broker lacks resources: see its log"),
    library.ConnectionInternalError: (TransportUnavailable, "the broker's log says more"),
    library.ConnectionClosed: (TransportUnavailable, ""),
    library.ConnectionSyntaxError: (TransportUnavailable, ""),
    library.ConnectionFrameError: (TransportUnavailable, ""),
    library.ConnectionCommandInvalid: (TransportUnavailable, ""),
    library.ConnectionChannelError: (TransportUnavailable, ""),
    library.ConnectionUnexpectedFrame: (TransportUnavailable, ""),
    library.AMQPConnectionError: (TransportUnavailable, ""),
    library.ChannelAccessRefused: (TransportRefused, "the user lacks a permission: docs/rabbitmq.md lists them"),
    library.ChannelNotFoundEntity: (TransportRefused, "provision it, or start the service with --provision"),
    library.ChannelPreconditionFailed: (
        TransportRefused,
        "it was made with other settings: delete it, or name another one",
    ),
    library.ChannelLockedResource: (TransportUnavailable, "somebody else is at it"),
    library.DuplicateConsumerTag: (TransportUnavailable, ""),
    library.ChannelClosed: (TransportUnavailable, ""),
    library.AMQPChannelError: (TransportUnavailable, ""),
    library.ChannelInvalidStateError: (TransportUnavailable, ""),
    library.MethodNotImplemented: (TransportRefused, "the broker lacks what was asked: RabbitMQ 3.10 or newer?"),
    library.PublishError: (TransportUnavailable, ""),
    library.DeliveryError: (TransportUnavailable, ""),
    library.AMQPError: (TransportUnavailable, ""),
    PAMQPException: (TransportUnavailable, ""),
    asyncio.IncompleteReadError: (TransportUnavailable, ""),
    OSError: (TransportUnavailable, ""),
}
_AWAY = "down or inaccessible"
FOREIGN = (
    library.AMQPError,
    library.ChannelInvalidStateError,
    PAMQPException,
    EOFError,
    OSError,
    RuntimeError,
)
"""What may come out of the library; of RuntimeError, what it raises for a connection that has just gone."""


def translated(error: BaseException, what: str) -> TransportError:
    """Return what tidewire raises for *error*: refused where a person must change something, else unavailable."""
    if isinstance(error, TransportError):
        return error
    if _AWAY in str(error):  # after a crash a broker says so for a while of what it has
        return TransportUnavailable(f"{what}: {_said(error)}")
    if "Connection.OpenOk" in str(error):  # what it says instead, the library does not tell
        return TransportRefused(f"{what}: the broker does not open it", hint=_VHOST)
    for kind in type(error).__mro__:
        if kind in TABLE:
            raised, hint = TABLE[kind]
            return raised(f"{what}: {_said(error)}", hint=hint)
    return TransportUnavailable(f"{what}: {_said(error)}")


def _said(error: BaseException) -> str:
    texts = [str(one) for one in error.args if one not in (None, "")]
    return f"{', '.join(texts)} ({type(error).__name__})" if texts else type(error).__name__
