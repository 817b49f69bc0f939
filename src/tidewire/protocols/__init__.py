"""The seams: what adapters give and what the runtime builds on, each with its contract in words.

Everything takes and gives batches (a batch of one is a batch). Nothing inherits: an adapter is whatever has
these members. Every ``async`` member is cancel-safe unless it says otherwise: after a cancelled call the
adapter is usable, and the effect has happened or has not.
"""

from __future__ import annotations

from tidewire.protocols.basics import Clock, Codec, Observer
from tidewire.protocols.broker import Enlisting, Finder, Inspector, Lagging, Ledger, Receiver, Transport
from tidewire.protocols.looks import BrokerLook, StoreLook, StoreTables
from tidewire.protocols.store import (
    Attempts,
    Backlog,
    HeldKeys,
    Inbox,
    Lanes,
    Outbox,
    Store,
    Surrounding,
    SyncOutbox,
    Timetable,
    TxTypes,
    Unit,
)

__all__ = [
    "Attempts",
    "Backlog",
    "BrokerLook",
    "Clock",
    "Codec",
    "Enlisting",
    "Finder",
    "HeldKeys",
    "Inbox",
    "Inspector",
    "Lagging",
    "Lanes",
    "Ledger",
    "Observer",
    "Outbox",
    "Receiver",
    "Store",
    "StoreLook",
    "StoreTables",
    "Surrounding",
    "SyncOutbox",
    "Timetable",
    "Transport",
    "TxTypes",
    "Unit",
]
