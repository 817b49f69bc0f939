"""Opening a store whose units run on the user's own pool."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tidewire.errors import ConfigurationError
from tidewire.kit.lent import lender_of
from tidewire.protocols import Store
from tidewire.stores.lent.store import LentStore, Speaking

__all__ = ["open_lent_store"]


@asynccontextmanager
async def open_lent_store(
    pool: object, url: str, open_inner: Callable[[str], AbstractAsyncContextManager[Store]]
) -> AsyncGenerator[LentStore]:
    """Open the store at *url* (where empty: at the pool's own) with its units on *pool*, which stays open.

    Raises:
        ConfigurationError: no pool that is known, one that leads to another database, or a store that cannot do it.
    """
    lender = lender_of(pool)
    place = url or lender.url
    if not place:
        raise ConfigurationError("the pool does not tell where it leads", hint="say it with url=…")
    async with open_inner(place) as inner:
        if not isinstance(inner, Speaking):
            raise ConfigurationError(
                f"a {type(inner).__name__} cannot have its units on a pool of another library",
                hint="a store at sqlite:///… or postgresql://… can",
            )
        store = LentStore(inner, lender)
        await store.check()
        yield store
