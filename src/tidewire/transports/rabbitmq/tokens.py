"""The token of a lane: who has it, has the lane. It carries the epoch, and what the broker's own counts do not say."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = ["Note", "Token"]


class Note(msgspec.Struct, frozen=True, array_like=True):
    """What the owners of a lane know of a copy that was handed out before. *crashes*: hand-outs that ended without a
    word · *failures*: counted releases · *floor*: returns up to this count of the broker's are explained."""

    crashes: int = 0
    failures: int = 0
    floor: int = 0


class Token(msgspec.Struct, frozen=True):
    """*epoch* grows with each owner, *serial* with each token that an owner writes; *notes* by the names of copies."""

    epoch: int
    serial: int = 0
    notes: Mapping[str, Note] = {}

    def encoded(self) -> bytes:
        """Return it as the body of a message."""
        return _encode(self)

    @staticmethod
    def decoded(body: bytes) -> Token:
        """Return the token in a body; one that is damaged is the least of all."""
        try:
            return _decode(body)
        except msgspec.MsgspecError:
            return Token(0)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Token).decode
