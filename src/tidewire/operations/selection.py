"""Which dead letters are meant, and the dead letter as an operator reads it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import blake2b

import msgspec

from tidewire.clock import microseconds
from tidewire.model import Browsed, DeadChannel, Message, Reason
from tidewire.rules.letters import DEDUP_WINDOW

__all__ = ["Letter", "Selection", "is_json"]

"""How long inbox marks are kept: what is older may take effect a second time."""

_JSON = re.compile(r"(application/json|text/json|[^;]*\+json)\s*(;|\Z)", re.IGNORECASE)
_STAMPS = ("dl-published", "dl-first-failed", "ce-time")


class Letter(msgspec.Struct, frozen=True):
    """A dead letter where it lies. *stored_at*: when the group gave up on it, µs since 1970, or None."""

    message: Message
    position: int | str
    stored_at: int | None = None

    @classmethod
    def of(cls, browsed: Browsed) -> Letter:
        """Return what was browsed in a dead channel as a letter."""
        return cls(browsed.message, browsed.position, browsed.stored_at)

    @property
    def channel(self) -> DeadChannel:
        """The dead channel it lies in."""
        to = self.message.to
        assert isinstance(to, DeadChannel), f"a dead letter lies in a dead channel, not at {to}"
        return to

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers, the event's own and those of the dead letter."""
        return self.message.headers

    @property
    def type(self) -> str:
        """The event's type, or nothing for a message that says none."""
        return self.headers.get("ce-type") or self.headers.get("dl-type", "")

    @property
    def reason(self) -> str:
        """Why the group gave up on it: a value of `Reason`."""
        return self.headers.get("dl-reason", "")

    @property
    def held(self) -> bool:
        """Whether nothing is wrong with it but that it waits behind another one of its key."""
        return self.reason == Reason.HELD.value

    @property
    def detail(self) -> str:
        """The sentence that says why."""
        return self.headers.get("dl-detail", "")

    @property
    def error(self) -> str:
        """Its last error, type and message, or nothing where no handler failed."""
        return self.headers.get("dl-last-error", "")

    @property
    def since(self) -> int | None:
        """The earliest moment, in µs, at which a part of it may have taken effect; None where nothing says so."""
        stamps = [_stamp(self.headers.get(name)) for name in _STAMPS]
        return min((stamp for stamp in (*stamps, self.stored_at) if stamp is not None), default=None)

    def beyond_window(self, now: int) -> bool:
        """Whether its inbox marks may be gone at *now* (µs): a redrive could repeat an effect."""
        since = self.since
        return since is not None and since < now - DEDUP_WINDOW // timedelta(microseconds=1)

    def digest(self) -> str:
        """Return a digest of the whole message, its place included, by which a copy of the letter is recognised."""
        message, channel = self.message, self.channel
        named = (channel.topic, channel.group, message.id, message.source, message.key, sorted(message.headers.items()))
        hashed = blake2b(msgspec.json.encode(named), digest_size=16)
        hashed.update(message.body)
        return base64.b64encode(hashed.digest()).decode()


class Selection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which dead letters are meant: those for which everything holds that is said. Nothing said means all.

    *error* is looked for, whatever its case, in the detail and in the first and last error. *before* and *after*
    bound when the group gave up on the letter (µs since 1970); a letter of unknown age matches neither.
    """

    topic: str = ""
    group: str = ""
    type: str = ""
    reason: str = ""
    error: str = ""
    key: str | None = None
    ids: tuple[str, ...] = ()
    before: int | None = None
    after: int | None = None

    @property
    def whole_channels(self) -> bool:
        """Whether it means every letter of the channels that it means at all."""
        return msgspec.structs.replace(self, topic="", group="") == Selection()

    @property
    def everything(self) -> bool:
        """Whether nothing is said, so that every letter of the broker is meant."""
        return self == Selection()

    def meets(self, channel: DeadChannel) -> bool:
        """Whether letters of *channel* can be meant."""
        return self.topic in ("", channel.topic) and self.group in ("", channel.group)

    def matches(self, letter: Letter) -> bool:
        """Whether *letter* is meant."""
        message = letter.message
        return (
            self.meets(letter.channel)
            and self.type in ("", letter.type)
            and self.reason in ("", letter.reason)
            and (self.key is None or self.key == message.key)
            and (not self.ids or message.id in self.ids)
            and self._fits_age(letter.stored_at)
            and (not self.error or self._fits_error(letter))
        )

    def _fits_age(self, stored_at: int | None) -> bool:
        if self.before is None and self.after is None:
            return True
        if stored_at is None:
            return False
        return (self.before is None or stored_at < self.before) and (self.after is None or stored_at >= self.after)

    def _fits_error(self, letter: Letter) -> bool:
        wanted = self.error.casefold()
        texts = (letter.detail, letter.error, letter.headers.get("dl-first-error", ""))
        return any(wanted in text.casefold() for text in texts)


def is_json(message: Message) -> bool:
    """Whether the message says that its body is JSON; one that says nothing is taken for it."""
    return _JSON.match(message.headers.get("content-type", "application/json")) is not None


def _stamp(text: str | None) -> int | None:
    """Return an ISO time of a header as µs since 1970; a damaged one, or one without a zone, says nothing."""
    if text is None:
        return None
    try:
        return microseconds(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None
