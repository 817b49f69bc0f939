"""The pytest plugin: the fixture ``tidewire``, and virtual time for the tests that use it.

Loaded by pytest in every project that has tidewire installed, so it imports nothing else until it is used.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["pytest_addoption", "pytest_configure", "pytest_pyfunc_call", "tidewire"]

_BROKER = "TIDEWIRE_TEST_BROKER"


@pytest.fixture
def tidewire() -> Callable[..., Any]:
    """Open a world of services: ``async with tidewire(billing) as world``; see `tidewire.testing.tidewire_world`."""
    from tidewire.testing.world import tidewire_world

    return tidewire_world


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--tidewire-broker``."""
    parser.addoption(
        "--tidewire-broker",
        metavar="URL",
        default="",
        help="run the tests that use the fixture `tidewire` on this broker, in real time (default: in memory)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Pass the option on, to where `tidewire_world` looks."""
    url = config.getoption("--tidewire-broker")
    if isinstance(url, str) and url:
        os.environ[_BROKER] = url


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
    if os.environ.get(_BROKER):
        asyncio.run(test)
    else:
        from tidewire.testing.virtual import run

        run(test)
    return True
