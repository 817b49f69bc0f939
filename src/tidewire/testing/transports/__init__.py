"""The transport conformance suite: what an adapter must do to be one.

Call ``pytest.register_assert_rewrite("tidewire.testing.transports")`` in ``conftest.py`` to see the values of an
assertion that fails.
"""

from __future__ import annotations

from tidewire.testing.transports.bench import Bench, Binding, Faults, Reader, Site
from tidewire.testing.transports.clients import Client, forward, spawn_client
from tidewire.testing.transports.suite import TransportConformance, run_case

__all__ = [
    "Bench",
    "Binding",
    "Client",
    "Faults",
    "Reader",
    "Site",
    "TransportConformance",
    "forward",
    "run_case",
    "spawn_client",
]
