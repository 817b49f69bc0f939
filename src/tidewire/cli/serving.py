"""The one place where the command line opens a broker and a store and runs a service on them."""

from __future__ import annotations

import gc
from contextlib import AsyncExitStack

from tidewire.config import Settings, open_store, open_transport
from tidewire.runtime.parts import Parts
from tidewire.runtime.serve import Options, serve_until_signal
from tidewire.runtime.service import Service

__all__ = ["serve"]


async def serve(service: Service, settings: Settings, *, parts: Parts | None = None, create: bool = True) -> None:
    """Open what *settings* name, run *service* until a signal, drain, close.

    Without *create* a broker that is not there is refused, where one would be made by being opened.

    Raises:
        ConfigurationError: a URL or a handler that cannot be, or a topology that is not as it should be.
        TransportUnavailable, TransportRefused, StoreUnavailable, StoreRefused: it cannot start.
    """
    options = Options(
        relay=settings.relay,
        lease=settings.seconds("lease"),
        grace=settings.seconds("grace"),
        max_hold=settings.seconds("max_hold"),
        stuck_after=settings.seconds("stuck_after"),
        stuck_lag=settings.stuck_lag,
        provision=settings.provision,
        lanes=settings.lanes,
    )
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(open_transport(settings.broker, create=create))
        store = None
        if settings.store:
            store = await stack.enter_async_context(open_store(settings.store, provision=settings.provision))
        gc.collect()
        gc.freeze()  # what was loaded stays until the end: the collector need not go through it again and again
        await serve_until_signal(
            service, transport=transport, store=store, options=options, parts=parts, probe=settings.probe_address()
        )
