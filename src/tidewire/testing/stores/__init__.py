"""The store conformance suite: what an adapter must do to be one.

Call ``pytest.register_assert_rewrite("tidewire.testing.stores")`` in ``conftest.py`` to see the values of an
assertion that fails.
"""

from __future__ import annotations

from tidewire.testing.stores.bench import Bench, MovedClock, Rows, Site, Writer
from tidewire.testing.stores.suite import StoreConformance, run_case

__all__ = ["Bench", "MovedClock", "Rows", "Site", "StoreConformance", "Writer", "run_case"]
