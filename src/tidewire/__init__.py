"""Tidewire: robust event-driven microservices.

Typed, versioned events; services as plain functions; an embedded durable broker; exactly-once effects in the
database that you enlist, at-least-once for anything else. Start with ``docs/`` or `Service`.

Names are loaded when they are first used, so that importing this package costs next to nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidewire.errors import (
        ConfigurationError,
        DecodeError,
        DependencyUnavailable,
        MissingExtra,
        PublishRejected,
        PublishUnknown,
        Reject,
        RetryAfter,
        TidewireError,
    )
    from tidewire.rules.events import domain_event, event
    from tidewire.rules.plain import Body, ContentHash, Header, Plain, Position
    from tidewire.rules.recurrence import Cron, Every
    from tidewire.rules.retry import Retry
    from tidewire.rules.upcasts import upcast
    from tidewire.runtime.context import Context, SyncContext
    from tidewire.runtime.emitter import Emitter
    from tidewire.runtime.parts import Parts
    from tidewire.runtime.probe import open_probe
    from tidewire.runtime.producer import Publisher, transaction
    from tidewire.runtime.serve import Options, Running, open_publisher, running, serve_until_signal
    from tidewire.runtime.service import Middleware, Service
    from tidewire.runtime.sync_producer import SyncPublisher

__all__ = [
    "Body",
    "ConfigurationError",
    "ContentHash",
    "Context",
    "Cron",
    "DecodeError",
    "DependencyUnavailable",
    "Emitter",
    "Every",
    "Header",
    "Middleware",
    "MissingExtra",
    "Options",
    "Parts",
    "Plain",
    "Position",
    "PublishRejected",
    "PublishUnknown",
    "Publisher",
    "Reject",
    "Retry",
    "RetryAfter",
    "Running",
    "Service",
    "SyncContext",
    "SyncPublisher",
    "TidewireError",
    "domain_event",
    "event",
    "open_probe",
    "open_publisher",
    "running",
    "serve_until_signal",
    "transaction",
    "upcast",
]
__version__ = "0.1.0.dev0"

_HOMES = {
    "errors": (
        "ConfigurationError DecodeError DependencyUnavailable MissingExtra PublishRejected PublishUnknown Reject "
        "RetryAfter TidewireError"
    ),
    "rules.events": "domain_event event",
    "rules.plain": "Body ContentHash Header Plain Position",
    "rules.recurrence": "Cron Every",
    "rules.retry": "Retry",
    "rules.upcasts": "upcast",
    "runtime.context": "Context SyncContext",
    "runtime.emitter": "Emitter",
    "runtime.parts": "Parts",
    "runtime.probe": "open_probe",
    "runtime.producer": "Publisher transaction",
    "runtime.serve": "Options Running open_publisher running serve_until_signal",
    "runtime.service": "Middleware Service",
    "runtime.sync_producer": "SyncPublisher",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

# A library speaks through logging only where the application asks it to.
logging.getLogger("tidewire").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'tidewire' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"tidewire.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
