"""From settings and URLs to open resources: where the environment is read, and where adapters are known by name."""

from __future__ import annotations

from tidewire.config.adapters import (
    examine_broker,
    examine_store,
    look_at_broker,
    look_at_store,
    open_store,
    open_store_on,
    open_transport,
    store_tables,
    sync_publisher,
)
from tidewire.config.settings import Settings, broker_of_tests, colour_refused, settings_and_origins, settings_from
from tidewire.config.urls import masked

__all__ = [
    "Settings",
    "broker_of_tests",
    "colour_refused",
    "examine_broker",
    "examine_store",
    "look_at_broker",
    "look_at_store",
    "masked",
    "open_store",
    "open_store_on",
    "open_transport",
    "settings_and_origins",
    "settings_from",
    "store_tables",
    "sync_publisher",
]
