"""What a test sees of a world: events that were published, and dead letters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import msgspec

from tidewire.model import Message

__all__ = ["DeadLetterSeen", "Events"]

T = TypeVar("T")


class Events(Sequence[T], Generic[T]):
    """Events that were published, in order. `one` is for when there must be exactly one."""

    def __init__(self, found: Sequence[tuple[T, Message]], what: str, story: Callable[[], str]) -> None:
        self._found = found
        self._what = what
        self._story = story

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        return list(self)[index]

    def __iter__(self) -> Iterator[T]:
        return (event for event, _ in self._found)

    def __repr__(self) -> str:
        return f"{self._what}: {list(self)!r}"

    @property
    def messages(self) -> list[Message]:
        """The messages that carried them."""
        return [message for _, message in self._found]

    def one(self) -> T:
        """Return the only one.

        Raises:
            AssertionError: there is none, or more than one; tells what happened in the world.
        """
        if len(self._found) != 1:
            raise AssertionError(f"{self._what}: expected one, there are {len(self._found)}\n\n{self._story()}")
        return self._found[0][0]

    def where(self, holds: Callable[[T], bool]) -> Events[T]:
        """Return those for which *holds* is true."""
        return Events([one for one in self._found if holds(one[0])], self._what, self._story)


class DeadLetterSeen(msgspec.Struct, frozen=True):
    """A dead letter as a test sees it: *attempts* calls of its handler, the last *error*; *event* is None where its
    body cannot be read."""

    group: str
    reason: str
    detail: str
    error: str
    attempts: int
    event: Any
    message: Message
