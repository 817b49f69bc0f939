"""Who has which lane, and through which tier a delay goes: decisions that every member makes alike."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["TIER_LEAST_MS", "dealt", "tier_for"]

_BASE, _TIERS = 4, 13
TIER_LEAST_MS = 250
"""What waits for less is kept by its lane's owner until it is due."""


def dealt(lanes: int, members: Sequence[str]) -> dict[int, str]:
    """Return who is to have each lane. *members* stand in the order in which they came.

    Shares differ by one at most, and who comes last takes no more than its own share from the others, so that few
    lanes change hands.
    """
    if not members:
        return {}
    shares: dict[str, list[int]] = {members[0]: list(range(lanes))}
    for place, member in enumerate(members[1:], 2):
        mine: list[int] = []
        for _ in range(lanes // place):
            richest = max(shares.values(), key=len)
            mine.append(richest.pop())
        shares[member] = sorted(mine)
    return {lane: member for member, share in shares.items() for lane in share}


def tier_for(wait_us: int) -> int | None:
    """Return the milliseconds of the longest tier that is not too long; None if every one is."""
    tier = TIER_LEAST_MS
    if wait_us < tier * 1000:
        return None
    for _ in range(_TIERS - 1):
        if tier * _BASE * 1000 > wait_us:
            break
        tier *= _BASE
    return tier
