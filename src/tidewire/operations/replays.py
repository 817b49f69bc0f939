"""Replay: what moving a group's cursor back would bring, and doing it, with an act in the audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import msgspec

from tidewire.clock import microseconds
from tidewire.errors import TransportRefused
from tidewire.kit.looks import StepsBack
from tidewire.model import Topic
from tidewire.protocols import Inspector, Store
from tidewire.rules.letters import DEDUP_WINDOW

__all__ = ["Preview", "beyond_marks", "look_ahead", "replay"]

_PAGE = 1_000


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What lies from a place on: how many messages, of which types, from when to when (µs since 1970)."""

    messages: int
    types: Mapping[str, int]
    first_at: int | None
    last_at: int | None
    owners: int


async def look_ahead(
    inspector: Inspector,
    topic: str,
    group: str,
    *,
    to: int | str | datetime,
    progress: Callable[[int], None] = lambda count: None,
) -> Preview:
    """Count what the group would get from *to* on; reads the topic, a page at a time.

    Raises:
        TransportRefused: there is no such topic or group.
    """
    groups = [one for one in await inspector.groups(topic) if one.group == group]
    if not groups:
        known = ", ".join(sorted(one.group for one in await inspector.groups(topic))) or "none"
        raise TransportRefused(f"there is no group {group!r} on topic {topic!r}", hint=f"its groups: {known}")
    types: Counter[str] = Counter()
    first_at: int | None = None
    last_at: int | None = None
    read = 0
    since = microseconds(to) if isinstance(to, datetime) else None
    after = _before(inspector, to)
    while page := await inspector.browse(Topic(topic), after=after, limit=_PAGE):
        after = page[-1].position
        read += len(page)
        progress(read)
        for one in page:
            if since is not None and (one.stored_at or 0) < since:
                continue
            types[one.message.headers.get("ce-type", "")] += 1
            first_at = one.stored_at if first_at is None else first_at
            last_at = one.stored_at
    owners = groups[0].owners or {}
    return Preview(
        messages=types.total(), types=dict(types), first_at=first_at, last_at=last_at, owners=len(set(owners.values()))
    )


async def replay(
    inspector: Inspector, topic: str, group: str, *, to: int | str | datetime, again: Store | None = None
) -> int | None:
    """Move the group's cursor to *to*. What has taken effect is skipped, unless *again*, the group's store, is given:
    then its run is raised first, everything takes effect once more, and the new run is returned.

    Raises:
        TransportRefused: a member is active, or what is asked for is not retained any more.
        StoreUnavailable, StoreRefused: the run could not be raised; the cursor is where it was.
    """
    if again is None:
        await inspector.seek(topic, group, to=to)
        return None
    # A run that is raised and a cursor that does not move do no harm; the other way round would skip everything.
    run = await again.inbox.next_run(group)
    await inspector.seek(topic, group, to=to)
    return run


def beyond_marks(preview: Preview, now_us: int) -> bool:
    """Whether the oldest event of *preview* is older than inbox marks live, so that a repair may repeat an effect."""
    return preview.first_at is not None and preview.first_at < now_us - DEDUP_WINDOW // timedelta(microseconds=1)


def _before(inspector: Inspector, to: int | str | datetime) -> int | str | None:
    """Return the position to browse behind, or None: from the start."""
    if isinstance(to, datetime):
        return None
    if isinstance(inspector, StepsBack):
        return inspector.before(to)
    return int(to) - 1 if str(to).isdigit() and int(to) > 0 else None
