"""`TransportConformance`: every case of the sections, as one class that an adapter's test file subclasses."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType

from tidewire.testing.transports.bench import PATIENCE, Bench, Site
from tidewire.testing.transports.sections import (
    a_publish,
    b_groups,
    c_order,
    d_settle,
    e_delay,
    f_channels,
    g_flow,
    h_failures,
    i_topology,
    j_headers,
    k_inspection,
    l_atomic,
    m_lifecycle,
    n_model,
    o_operators,
    p_faults,
    q_services,
)

__all__ = ["TransportConformance", "run_case"]

SECTIONS: tuple[ModuleType, ...] = (
    a_publish,
    b_groups,
    c_order,
    d_settle,
    e_delay,
    f_channels,
    g_flow,
    h_failures,
    i_topology,
    j_headers,
    k_inspection,
    l_atomic,
    m_lifecycle,
    n_model,
    o_operators,
    p_faults,
    q_services,
)
CASE_SECONDS_MAX = 60.0
"""No case needs a tenth of it; it ends one that hangs."""

Case = Callable[[Bench], Awaitable[None]]


class TransportConformance:
    """What every transport must do. Subclass it with a name that pytest collects, and say where the broker is::

        class TestMyTransport(TransportConformance):
            def site(self, directory: Path) -> Site:
                return Site(open=lambda: open_my_transport("my://localhost"))

    Each method is one case. It is skipped only for a declared capability that is false, which the text names;
    ``not proven: needs fault …`` means that the site cannot do what the case needs. After each case nothing may
    be left: no task, no thread, no file descriptor.
    """

    def site(self, directory: Path) -> Site:
        """Return the broker for one case; *directory* is empty and its own."""
        raise NotImplementedError("an adapter's test class says where its broker is")


def run_case(case: Case, site: Site) -> None:
    """Run one case on an event loop of its own and demand that it leaves nothing behind."""
    before = _held()
    with asyncio.Runner() as runner:
        try:
            runner.run(_on_bench(case, site))
        except ExceptionGroup as group:
            raise _only(group) from None  # a task group around one failure, or one skip, says nothing more
    leaked: set[str] = set()
    for patience in range(50):
        leaked = _held() - before
        if not leaked:
            return
        gc.collect()
        threading.Event().wait(0.01 * (patience > 0))  # a thread that has been told to end may need a moment
    raise AssertionError(f"left behind: {sorted(leaked)}")


def _only(error: Exception) -> Exception:
    inner: Sequence[Exception] = getattr(error, "exceptions", ())
    return _only(inner[0]) if len(inner) == 1 else error


async def _on_bench(case: Case, site: Site) -> None:
    PATIENCE.set(site.patience)
    async with asyncio.timeout(CASE_SECONDS_MAX), AsyncExitStack() as stack:
        transport = await stack.enter_async_context(site.open())
        await case(Bench(site, transport, stack))
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    assert set() == tasks, f"tasks that outlive the transport: {tasks}"


def _held() -> set[str]:
    """Return what this process holds: its threads and, where the system tells, its open files."""
    threads = {f"thread {thread.name} {thread.ident}" for thread in threading.enumerate()}
    return threads | set(_open_files())


def _open_files() -> Iterator[str]:
    directory = Path("/proc/self/fd")
    if not directory.is_dir():
        return
    for number in os.listdir(directory):
        try:
            yield f"file descriptor {number} {os.readlink(directory / number)}"
        except FileNotFoundError:
            continue  # the one that listed the directory


def _method(case: Case) -> Callable[[TransportConformance, Path], None]:
    def method(self: TransportConformance, tmp_path: Path) -> None:
        run_case(case, self.site(tmp_path))

    method.__doc__ = case.__doc__
    return method


for _section in SECTIONS:
    for _name, _case in vars(_section).items():
        if _name.startswith("test_"):
            assert not hasattr(TransportConformance, _name), f"{_name} stands in two sections"
            setattr(TransportConformance, _name, _method(_case))
