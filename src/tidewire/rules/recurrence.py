"""When something recurs: every so often, or as a cron expression says in a time zone. Pure: moments in, moments out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol, TypeAlias
from zoneinfo import ZoneInfo

from tidewire.errors import ConfigurationError, MissingExtra

__all__ = ["Cron", "Every", "Missed", "Recurrence", "plan_run"]

Missed: TypeAlias = Literal["latest", "all", "skip"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHORTEST = timedelta(milliseconds=10)
_LOOK_BACK = tuple(timedelta(seconds=seconds) for seconds in (1, 60, 3_600, 86_400, 40 * 86_400, 4 * 366 * 86_400))


class Recurrence(Protocol):
    """Something that is due again and again; *text* says it in one line and is stored, so that a change is noticed."""

    @property
    def text(self) -> str:
        """The rule in one line."""
        ...

    def after(self, moment: datetime) -> datetime:
        """Return the first due time behind *moment*, which is aware."""
        ...


class Every:
    """Due every *interval*, counted from *start* (default: 1970, so that every process counts the same).

    An interval is a length of time, whatever clocks on the wall do; for "at six in the morning" use `Cron`.

    Raises:
        ConfigurationError: an interval below 10 ms, or a start without a time zone.
    """

    def __init__(self, interval: timedelta, *, start: datetime = _EPOCH) -> None:
        if interval < _SHORTEST:
            raise ConfigurationError(f"Every({interval}): an interval is at least {_SHORTEST}")
        if start.tzinfo is None:
            raise ConfigurationError("Every(start=…) needs a time zone", hint="datetime(…, tzinfo=UTC)")
        self._interval = interval
        self._start = start

    @property
    def text(self) -> str:
        """The rule in one line."""
        return f"every {self._interval.total_seconds():g} s from {self._start.isoformat()}"

    def after(self, moment: datetime) -> datetime:
        """Return the first due time behind *moment*."""
        return self._start + ((moment - self._start) // self._interval + 1) * self._interval


class Cron:
    """Due as a cron expression says, in a time zone: ``Cron("0 6 * * MON-FRI", zone="Europe/Berlin")``.

    Five fields (minute hour day month weekday), or six with seconds first. When the clocks go forward, what falls
    into the missing hour is due right after it; when they go back, a fixed hour is due once (Debian's cron). Needs
    ``tidewire[cron]``.

    Raises:
        MissingExtra: the extra is not installed.
        ConfigurationError: not a cron expression, one that is never due, or no such time zone.
    """

    def __init__(self, expression: str, *, zone: str = "UTC") -> None:
        try:
            self._zone = UTC if zone == "UTC" else ZoneInfo(zone)
        except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
            raise ConfigurationError(
                f"Cron(zone={zone!r}): there is no such time zone", hint="a name such as Europe/Berlin"
            ) from error
        self._expression = expression
        self._name = zone
        self._first_behind(_EPOCH)

    @property
    def text(self) -> str:
        """The rule in one line."""
        return f"cron {self._expression} in {self._name}"

    def after(self, moment: datetime) -> datetime:
        """Return the first due time behind *moment*."""
        return self._first_behind(moment)

    def _first_behind(self, moment: datetime) -> datetime:
        found: Iterator[datetime] = _cronsim(self._expression, moment.astimezone(self._zone))
        try:
            return next(found).astimezone(UTC)
        except StopIteration:
            raise ConfigurationError(f"Cron({self._expression!r}) is never due") from None


def _cronsim(expression: str, start: datetime) -> Iterator[datetime]:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError:
        raise MissingExtra("Cron(…) needs cronsim", hint="pip install tidewire[cron]") from None
    try:
        return CronSim(expression, start)
    except CronSimError as error:
        raise ConfigurationError(
            f"Cron({expression!r}): {error}", hint="minute hour day month weekday, for example 0 6 * * MON-FRI"
        ) from None


def plan_run(
    rule: Recurrence, *, due: datetime, now: datetime, missed: Missed, late: timedelta
) -> tuple[datetime | None, datetime]:
    """Return which run is to happen now (None: none) and when the next is due, where *due* has come at *now*.

    A run is missed if it is later than *late*. ``latest``: of several that have come, only the last happens.
    ``all``: one after another. ``skip``: missed ones do not happen.
    """
    if missed == "all":
        return due, rule.after(due)
    latest = max(due, _last_before(rule, now) or due)
    if missed == "skip" and now - latest > late:
        return None, rule.after(latest)
    return latest, rule.after(latest)


def _last_before(rule: Recurrence, now: datetime) -> datetime | None:
    """Return the last due time that has come at *now*; looks back further and further, so it is short for any rule."""
    for back in _LOOK_BACK:
        found = rule.after(now - back)
        if found > now:
            continue
        while (following := rule.after(found)) <= now:
            found = following
        return found
    return None
