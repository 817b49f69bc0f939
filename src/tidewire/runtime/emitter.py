"""Plain in-process events: `on`, `once`, `off`, `emit`. No broker, no store, no promise beyond the call itself.

For what must happen in the same transaction, handle a domain event with `Service.on` and publish it with
``context.publish``; an `Emitter` is for the rest: caches, counters, screens.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

__all__ = ["Emitter"]

Listener = Callable[..., Any]
F = TypeVar("F", bound=Listener)


class Emitter:
    """Named listeners of one process. A name is a string or a class; emitting an object uses its class."""

    def __init__(self) -> None:
        self._listeners: dict[Hashable, list[tuple[Listener, bool]]] = {}

    def on(self, name: Hashable, listener: Listener | None = None) -> Any:
        """Call *listener* at every `emit` of *name*, in the order of registration; without it, a decorator.

        A listener may be ``def`` or ``async def``; registering it twice calls it twice.
        """
        return self._add(name, listener, once=False)

    def once(self, name: Hashable, listener: Listener | None = None) -> Any:
        """As `on`, for the next `emit` only: it is removed before it is called."""
        return self._add(name, listener, once=True)

    def off(self, name: Hashable, listener: Listener) -> bool:
        """Remove the newest registration of *listener* and return whether there was one."""
        listeners = self._listeners.get(name, [])
        for index in range(len(listeners) - 1, -1, -1):
            if listeners[index][0] is listener:
                del listeners[index]
                if not listeners:
                    del self._listeners[name]
                return True
        return False

    def listeners(self, name: Hashable) -> list[Listener]:
        """Return the listeners of *name*, in calling order."""
        return [listener for listener, _ in self._listeners.get(name, [])]

    async def emit(self, event: object, *arguments: object) -> bool:
        """Call the listeners one after another and return whether there was any.

        ``emit("saved", order)`` calls those of ``"saved"`` with ``order``; ``emit(OrderSaved(…))`` those of the
        class, with the object. What a listener raises, rises, and the later ones are not called. Listeners added
        meanwhile wait for the next `emit`.
        """
        name: Any = event if isinstance(event, str) else type(event)
        given = arguments if isinstance(event, str) else (event, *arguments)
        registered = list(self._listeners.get(name, ()))
        for listener, once in registered:
            if once:
                self.off(name, listener)
            result = listener(*given)
            if inspect.isawaitable(result):
                await result
        return bool(registered)

    async def wait(self, name: Hashable) -> Any:
        """Wait for the next `emit` of *name* and return what it was given: one value, or a tuple of several."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def take(*given: object) -> None:
            if not future.done():
                future.set_result(given[0] if len(given) == 1 else given)

        self.once(name, take)
        try:
            return await future
        finally:
            self.off(name, take)

    def _add(self, name: Hashable, listener: Listener | None, *, once: bool) -> Any:
        def register(function: F) -> F:
            self._listeners.setdefault(name, []).append((function, once))
            return function

        return register if listener is None else register(listener)
