"""Whether a store gives its handlers the ``context.tx`` that they are annotated with; asked once, at the start."""

from __future__ import annotations

import typing

from tidewire.protocols import Store, TxTypes
from tidewire.rules.functions import annotated_context, reads_tx
from tidewire.runtime.context import Context, SyncContext
from tidewire.runtime.service import Handler, Recurring, Service

__all__ = ["tx_problems"]


def tx_problems(service: Service, store: Store | None) -> list[str]:
    """Return what is wrong: a handler that wants another ``context.tx`` than this store gives, in one sentence each."""
    if not isinstance(store, TxTypes):
        return []
    handlers: list[Handler | Recurring] = [*service.handlers, *service.recurring]
    return [problem for handler in handlers if (problem := _problem(service, handler, store.tx_types))]


def _problem(service: Service, handler: Handler | Recurring, gives: tuple[type | None, type | None]) -> str:
    awaited, plain = gives
    given = plain if handler.blocking else awaited
    wanted = _wanted(handler)
    where = f"{service.name}.{handler.name}"
    if given is None and (wanted is not None or reads_tx(handler.function)):
        kinds = ("def", "async def") if handler.blocking else ("async def", "def")
        return f"{where} is a `{kinds[0]}` handler, and the pool that its store was opened on is for `{kinds[1]}` ones"
    if wanted is None or given is None or issubclass(given, wanted):
        return ""
    return f"{where} wants a context.tx of {wanted.__qualname__}, and its store gives {given.__qualname__}"


def _wanted(handler: Handler | Recurring) -> type | None:
    """Return the class in ``Context[…]``, or None where a handler says none; a protocol is for type checkers."""
    if not handler.takes_context:
        return None
    annotation = annotated_context(handler.function)
    if typing.get_origin(annotation) not in (Context, SyncContext):
        return None
    wanted = next(iter(typing.get_args(annotation)), None)
    if not isinstance(wanted, type) or wanted is typing.Any or getattr(wanted, "_is_protocol", False):
        return None
    return wanted
