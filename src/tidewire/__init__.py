"""Tidewire: robust event-driven microservices.

Typed, versioned events; services as plain functions; an embedded durable broker; exactly-once effects in the
database that you enlist, at-least-once for anything else. Start with ``docs/`` or `Service`.
"""

from __future__ import annotations

from tidewire.errors import (
    ConfigurationError,
    DecodeError,
    MissingExtra,
    PublishRejected,
    PublishUnknown,
    Reject,
    RetryAfter,
    TidewireError,
)
from tidewire.rules.events import domain_event, event
from tidewire.rules.retry import Retry
from tidewire.rules.upcasts import upcast
from tidewire.runtime.context import Context, SyncContext
from tidewire.runtime.producer import Publisher, transaction
from tidewire.runtime.serve import Options, Running, running
from tidewire.runtime.service import Middleware, Service

__all__ = [
    "ConfigurationError",
    "Context",
    "DecodeError",
    "Middleware",
    "MissingExtra",
    "Options",
    "PublishRejected",
    "PublishUnknown",
    "Publisher",
    "Reject",
    "Retry",
    "RetryAfter",
    "Running",
    "Service",
    "SyncContext",
    "TidewireError",
    "domain_event",
    "event",
    "running",
    "transaction",
    "upcast",
]
__version__ = "0.1.0.dev0"
