"""How large a message is for a broker that carries headers as bytes."""

from __future__ import annotations

from tidewire.model import Message

__all__ = ["carried_size"]


def carried_size(message: Message, enough: int) -> int:
    """Return the bytes of body, header names and header values; a guess that is too high where it is below *enough*.

    Raises:
        UnicodeEncodeError: a header cannot be carried.
    """
    headers = message.headers
    # A character has at most four bytes; counting them is left to those that come near.
    guess = len(message.body) + 4 * (sum(map(len, headers)) + sum(map(len, headers.values())))
    if guess < enough:
        return guess
    return len(message.body) + sum(len(name.encode()) + len(text.encode()) for name, text in headers.items())
