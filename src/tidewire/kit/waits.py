"""Waiting for something, but not for ever."""

from __future__ import annotations

import asyncio

__all__ = ["happens"]


async def happens(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait until *event* is set; False if it was not within so many *seconds*. None: however long it takes."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
