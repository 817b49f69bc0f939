"""What task groups raise, made readable."""

from __future__ import annotations

from typing import cast

__all__ = ["first_error"]


def first_error(error: BaseException) -> BaseException:
    """Return the first error inside a group of groups, the one that ended the others; *error* itself if it is none."""
    first = error
    while isinstance(first, BaseExceptionGroup):
        first = cast("BaseExceptionGroup[BaseException]", first).exceptions[0]
    return first
