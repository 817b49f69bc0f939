"""`StoreConformance`: every case of the sections, as one class that an adapter's test file subclasses."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType

from tidewire.testing.leftovers import run_alone
from tidewire.testing.stores.bench import Bench, MovedClock, Site
from tidewire.testing.stores.sections import (
    a_units,
    b_marks,
    c_outbox,
    d_backlog,
    e_records,
    f_lanes,
    g_timetable,
    h_processes,
    i_model,
)

__all__ = ["SECTIONS", "StoreConformance", "run_case"]

SECTIONS: tuple[ModuleType, ...] = (
    a_units,
    b_marks,
    c_outbox,
    d_backlog,
    e_records,
    f_lanes,
    g_timetable,
    h_processes,
    i_model,
)

Case = Callable[[Bench], Coroutine[None, None, None]]


class StoreConformance:
    """What every store must do. Subclass it with a name that pytest collects, and say how the store is opened::

        class TestMyStore(StoreConformance):
            def site(self, directory: Path) -> Site:
                return Site(open=lambda clock: open_my_store(directory / "my.db", clock=clock), rows=MyRows())

    Each method is one case. It is skipped only for a property of the `Site` that is false, which the text names;
    ``not proven: needs fault …`` means that the site cannot do what the case needs. After each case nothing may
    be left: no task, no thread, no file descriptor.
    """

    def site(self, directory: Path) -> Site:
        """Return the store for one case; *directory* is empty and its own."""
        raise NotImplementedError("an adapter's test class says how its store is opened")


def run_case(case: Case, site: Site) -> None:
    """Run one case on an event loop of its own and demand that it leaves nothing behind."""
    run_alone(lambda: _on_bench(case, site))


async def _on_bench(case: Case, site: Site) -> None:
    clock = MovedClock()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(site.open(clock))
        await site.rows.prepare(store)
        await case(Bench(site, store, clock=clock, stack=stack))


def _method(case: Case) -> Callable[[StoreConformance, Path], None]:
    def method(self: StoreConformance, tmp_path: Path) -> None:
        run_case(case, self.site(tmp_path))

    method.__doc__ = case.__doc__
    return method


for _section in SECTIONS:
    for _name, _case in vars(_section).items():
        if _name.startswith("test_"):
            assert not hasattr(StoreConformance, _name), f"{_name} stands in two sections"
            setattr(StoreConformance, _name, _method(_case))
