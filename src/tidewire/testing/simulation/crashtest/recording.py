"""What happens in one world, in order, and where exactly its process died."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
import linecache
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import msgspec

from tidewire.runtime.service import Handler, Service

__all__ = ["Entry", "Recorder", "effect"]

Did = Literal["publish", "duplicate", "start", "effect", "raise", "end", "commit", "kill"]
_running: contextvars.ContextVar[Run | None] = contextvars.ContextVar("tidewire-crashtest-run", default=None)


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened: what (*did*), to which *event*, by which *handler* in which *attempt*."""

    did: Did
    event: str = ""
    handler: str = ""
    attempt: int = 0
    detail: str = ""
    values: tuple[Any, ...] = ()


class Run:
    """One call of a handler."""

    def __init__(self, recorder: Recorder, handler: str, event: str, attempt: int) -> None:
        self.recorder = recorder
        self.handler = handler
        self.event = event
        self.attempt = attempt
        self.coroutine: Any = None

    def note(self, did: Did, detail: str = "", *, values: tuple[Any, ...] = ()) -> None:
        """Add an entry of this call."""
        self.recorder.add(
            Entry(did=did, event=self.event, handler=self.handler, attempt=self.attempt, detail=detail, values=values)
        )


class Recorder:
    """Listens to a service in one world."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._runs: list[Run] = []
        self._last: dict[str, Did] = {}

    def add(self, entry: Entry) -> None:
        """Add an entry."""
        self.entries.append(entry)
        if entry.event:
            self._last[entry.event] = entry.did

    def listening(self, service: Service) -> Service:
        """Return *service* with every call of its handlers noted. What recurs by the clock is left out."""
        heard = copy.copy(service)
        heard.handlers = [self._heard(handler) for handler in service.handlers]
        heard.recurring = []
        return heard

    def killed(self, event: str) -> None:
        """Note that the process dies now, while *event* is under way, and where it stands."""
        run = self._runs[-1] if self._runs else None
        where = _BETWEEN.get(self._last.get(event, "publish"), "") if run is None else f"in {run.handler}"
        place = "" if run is None else _place(run.coroutine)
        self.add(Entry(did="kill", event=event, handler="" if run is None else run.handler, detail=where + place))
        self._runs.clear()

    def _heard(self, handler: Handler) -> Handler:
        function = handler.function

        def begun(context: Any) -> Run:
            run = Run(self, handler.name, context.envelope.id, context.attempt)
            self._runs.append(run)
            run.note("start")
            return run

        def ended(run: Run, error: BaseException | None) -> None:
            if run in self._runs:
                self._runs.remove(run)
            if error is None:
                run.note("end")
            elif not isinstance(error, (asyncio.CancelledError, GeneratorExit)):
                run.note("raise", f"{type(error).__name__}: {error}")

        if handler.blocking:
            heard = _heard_sync(function, handler, begun, ended)
        else:
            heard = _heard_async(function, handler, begun, ended)
        return msgspec.structs.replace(handler, function=heard, takes_context=True)


def effect(name: str, *values: object) -> None:
    """Note an effect outside of the service's database, in a fake of what the service calls: `effect("charged", 7)`.

    Within `tidewire crashtest` it is compared with the run without a crash, and told with the handler that did it.
    Anywhere else nothing happens.
    """
    run = _running.get()
    if run is not None:
        run.note("effect", name, values=values)


def _heard_async(
    function: Callable[..., Any], handler: Handler, begun: Callable[..., Run], ended: Callable[..., None]
) -> Any:
    @wraps(function)
    async def heard(event: Any, context: Any) -> Any:
        run = begun(context)
        token = _running.set(run)
        try:
            run.coroutine = function(event, context) if handler.takes_context else function(event)
            returned = await run.coroutine
        except BaseException as error:
            ended(run, error)
            raise
        finally:
            _running.reset(token)
        ended(run, None)
        return returned

    return heard


def _heard_sync(
    function: Callable[..., Any], handler: Handler, begun: Callable[..., Run], ended: Callable[..., None]
) -> Any:
    @wraps(function)
    def heard(event: Any, context: Any) -> Any:
        run = begun(context)
        token = _running.set(run)
        try:
            returned = function(event)
        except BaseException as error:
            ended(run, error)
            raise
        finally:
            _running.reset(token)
        ended(run, None)
        return returned

    return heard


def _place(coroutine: Any) -> str:
    """Return the line of the handler at which it waits."""
    frame = coroutine.cr_frame if inspect.iscoroutine(coroutine) else None
    if frame is None:
        return ""
    path = Path(frame.f_code.co_filename)
    line = linecache.getline(str(path), frame.f_lineno).partition("  #")[0].strip()
    return f", at {path.name}:{frame.f_lineno}: {line}"


_BETWEEN: dict[Did, str] = {
    "publish": "before the handler has begun",
    "duplicate": "before the event is handled again",
    "end": "after the handler has returned and before its commit is known",
    "raise": "after the handler has failed",
    "commit": "after the commit",
}
