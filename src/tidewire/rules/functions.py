"""What a handler's function says about itself, without running it: what it returns, and whether it uses the store."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable

from tidewire.rules.events import EventType, definition_of, is_event

__all__ = ["annotated_context", "reads_tx", "returned_events"]


class _Annotated:
    """Carries one annotation to `typing.get_type_hints`, so that the others cannot fail."""

    def __init__(self, annotation: object) -> None:
        self.__annotations__ = {"return": annotation}


def returned_events(function: Callable[..., object]) -> list[EventType]:
    """Return the events that *function* says it returns: ``-> A``, ``-> A | None``, ``-> list[A | B]``.

    What is not annotated, or cannot be resolved, is not there; nor is what it publishes through its context.
    """
    function = inspect.unwrap(function)
    annotation = getattr(function, "__annotations__", {}).get("return")
    if annotation is None:
        return []
    try:
        found = typing.get_type_hints(_Annotated(annotation), getattr(function, "__globals__", {}))["return"]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return []
    events: dict[str, EventType] = {}
    todo: list[object] = [found]
    while todo:
        one = todo.pop()
        todo += typing.get_args(one)
        if is_event(one) and isinstance(one, type):
            definition = definition_of(one)
            events[definition.type] = definition
    return sorted(events.values(), key=lambda event: event.type)


def annotated_context(function: Callable[..., object]) -> object:
    """Return the resolved annotation of the second parameter of *function*; None: it has none that can be resolved."""
    function = inspect.unwrap(function)
    parameters = [*inspect.signature(function).parameters.values()][1:2]
    annotation = getattr(function, "__annotations__", {}).get(parameters[0].name) if parameters else None
    if annotation is None:
        return None
    try:
        return typing.get_type_hints(_Annotated(annotation), getattr(function, "__globals__", {}))["return"]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return None


def reads_tx(function: Callable[..., object]) -> bool:
    """Whether the code of *function* itself reads an attribute ``tx``, as ``context.tx`` does."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and "tx" in code.co_names
