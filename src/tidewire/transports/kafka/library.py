"""The admin values of confluent-kafka, which its package re-exports without saying so to type checkers."""

# mypy: disable-error-code="attr-defined, no-untyped-call, no-any-return"
# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportReturnType=false

from __future__ import annotations

from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

__all__ = ["AdminClient", "ConfigResource", "NewTopic", "OffsetSpec", "at_or_after", "earliest", "latest"]


def earliest() -> OffsetSpec:
    """Ask for the first offset that is kept."""
    return OffsetSpec.earliest()


def latest() -> OffsetSpec:
    """Ask for the offset behind the last one."""
    return OffsetSpec.latest()


def at_or_after(us: int) -> OffsetSpec:
    """Ask for the first offset whose record was stored at or after a time (µs since 1970, judged in milliseconds)."""
    return OffsetSpec.for_timestamp(us // 1000)
