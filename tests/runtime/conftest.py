"""Services run for real here: the real runtime on a real transport and store, both kinds, on short clocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from runtime_world import Opened, opened_on


@pytest.fixture(params=["memory", "sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """A function that opens the world of one kind."""
    return opened_on(request.param, tmp_path)
