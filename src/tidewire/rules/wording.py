"""Guarantees and retry policies as sentences, for the command line and the console."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from tidewire.model import ZERO
from tidewire.rules.guarantees import Guarantee, Terms, waits
from tidewire.rules.retry import Retry

__all__ = ["in_words", "retry_in_words", "sentences", "terms_in_words"]

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
_SHOWN = 8


def in_words(duration: timedelta) -> str:
    """Return a duration as people write it: ``4 min 16 s``, ``35 d``, ``250 ms``; two units at most."""
    seconds = duration.total_seconds()
    if 0 < seconds < 1:
        return f"{seconds * 1_000:g} ms"
    parts: list[str] = []
    for length, unit in _UNITS:
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count:.0f} {unit}")
    if seconds or not parts:
        parts.append(f"{seconds:.3g} s")
    return " ".join(parts[:2])


def retry_in_words(policy: Retry) -> str:
    """Return what *policy* means: how many attempts, after which waits, and how long that takes at most."""
    return _schedule(policy.attempts, waits(policy))


def _schedule(attempts: int, between: Sequence[timedelta]) -> str:
    if not between:
        return "1 attempt, no retry"
    shown = ", ".join(in_words(wait) for wait in between[:_SHOWN]) + (", …" if len(between) > _SHOWN else "")
    total = in_words(sum(between, ZERO))
    return f"{attempts} attempts, after waits of up to {shown} (each drawn from zero on: full jitter), {total} in all"


def sentences(guarantee: Guarantee, terms: Terms) -> list[tuple[str, str]]:
    """Return what *guarantee* means, as a heading and a sentence for each point."""
    return [
        ("effect", _effect(guarantee)),
        ("order", _order(guarantee)),
        ("retries", f"{_schedule(guarantee.attempts, guarantee.waits)}; a run of over {in_words(guarantee.timeout)} is "
                    "a failure"),
        ("while failing", _while_failing(guarantee)),
        ("at the end", _at_the_end(guarantee)),
        ("repeats", _repeats(guarantee)),
        ("publishing", _publishing(terms)),
    ]  # fmt: skip


def _effect(guarantee: Guarantee) -> str:
    if guarantee.effect == "exactly once":
        return "exactly once in the store (context.tx), at least once for anything else"
    return "at least once: there is no store, so a repeat runs the handler again"


def _order(guarantee: Guarantee) -> str:
    if guarantee.ordering == "none":
        why = "the handler asked for none" if guarantee.event.key else "the event declares no key"
        return f"none ({why})"
    key = ", ".join(guarantee.event.key or ())
    return f"by key {key}: one event of a key at a time, in order, over retries, crashes and hand-overs"


def _while_failing(guarantee: Guarantee) -> str:
    if guarantee.ordering == "none":
        return "it alone waits, in the group's inbox channel; everything else goes on"
    if guarantee.max_hold is None:
        return "its key is held in the process until its last attempt; other keys go on"
    limit = in_words(guarantee.max_hold)
    return f"its key is held, for up to {limit} in the process, then in the inbox channel; other keys go on"


def _at_the_end(guarantee: Guarantee) -> str:
    longest = f"after {in_words(guarantee.longest)} at most it is a dead letter, kept until a person acts"
    if guarantee.ordering == "none":
        return longest
    if guarantee.on_dead_letter == "hold_key":
        return f"{longest}; later events of its key follow it there, and are redriven in order"
    return f"{longest}; later events of its key go on"


def _repeats(guarantee: Guarantee) -> str:
    if guarantee.dedup is None:
        return "not recognised"
    if guarantee.effect == "exactly once":
        return f"recognised for {in_words(guarantee.dedup)}, by an inbox mark"
    return f"of one publish are recognised by the broker for {in_words(guarantee.dedup)}; redeliveries are not"


def _publishing(terms: Terms) -> str:
    if terms.has_store:
        return "events leave if and only if the unit commits (outbox), any delay is kept"
    limit = terms.capabilities.delay_max
    kept = "any delay is kept" if limit is None else f"delays of up to {in_words(limit)}" if limit else "no delay"
    return f"events are stored before the delivery is acked; a repeat has the same ids; {kept}"


def terms_in_words(terms: Terms) -> list[tuple[str, str]]:
    """Return what holds for all handlers of a service alike."""
    return [
        ("stored", {
            "none": "nowhere: the broker keeps nothing beyond its process",
            "os": "what publish confirms survives kill -9, not power loss",
            "fsync": "what publish confirms is synced to disk",
            "replicated": "what publish confirms is replicated",
        }[terms.capabilities.durability]),
        ("a crash", f"delays its lanes by at most {in_words(terms.lease)} (lease)" if terms.capabilities.lease
                    else "delays its lanes until the broker notices"),
        ("a zombie", "can neither settle nor commit (fencing)" if terms.capabilities.fencing and terms.has_store
                     else "cannot settle (fencing)" if terms.capabilities.fencing
                     else "may still commit: this broker does not fence"),
        ("a stop", f"gives handlers {in_words(terms.grace)} (grace); what takes longer comes back, uncounted"),
        ("bounds", f"{terms.concurrency} handlers at a time, {terms.prefetch} events unsettled, in each process"),
    ]  # fmt: skip
