"""The pytest plugin: the fixture ``tidewire``, and virtual time for the tests that use it.

Loaded by pytest in every project that has tidewire installed, so it imports nothing else until it is used.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tidewire.testing.world import World

__all__ = ["tidewire"]


@pytest.fixture
def tidewire(request: pytest.FixtureRequest) -> Callable[..., AbstractAsyncContextManager[World]]:
    """Open a world of services: ``async with tidewire(billing) as world``; see `tidewire.testing.tidewire_world`."""
    from tidewire.testing.world import tidewire_world

    return partial(tidewire_world, broker=_broker(request.config))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--tidewire-broker``."""
    parser.addoption(
        "--tidewire-broker",
        metavar="URL",
        default="",
        help="run the tests that use the fixture `tidewire` on this broker, in real time (default: in memory)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    """Run a coroutine test that uses the fixture on virtual time, unless another plugin runs it."""
    if "tidewire" not in pyfuncitem.fixturenames or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    theirs = any(pyfuncitem.get_closest_marker(name) for name in ("asyncio", "anyio"))
    if theirs or "anyio_backend" in pyfuncitem.fixturenames:
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs})
    if _broker(pyfuncitem.config):
        asyncio.run(test)
    else:
        from tidewire.testing.virtual import run

        run(test)
    return True


def _broker(config: pytest.Config) -> str:
    """Return the URL of the broker that was asked for; nothing means: in memory, on virtual time."""
    from tidewire.config import broker_of_tests

    given = config.getoption("--tidewire-broker")
    return given if isinstance(given, str) and given else broker_of_tests()
