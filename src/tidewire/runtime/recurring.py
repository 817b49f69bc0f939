"""Recurring runs: once per store whatever the number of processes, kept over restarts, in the store's transaction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from tidewire.clock import microseconds, moment
from tidewire.errors import AlreadyMarked, StoreRefused
from tidewire.kit.waits import happens
from tidewire.model import ZERO, Message, Topic
from tidewire.rules.outgoing import derived_id
from tidewire.rules.recurrence import plan_run
from tidewire.rules.retry import delay_ceiling
from tidewire.runtime.context import Context
from tidewire.runtime.outgoing import Outgoing
from tidewire.runtime.parts import Parts
from tidewire.runtime.service import Recurring

__all__ = ["RecurringTask"]

_logger = logging.getLogger("tidewire.recurring")
_LATE = timedelta(minutes=1)
_LONGEST_WAIT = timedelta(seconds=30)
_LEASE_MARGIN = timedelta(seconds=30)
_LOOK_AGAIN = timedelta(seconds=1)


class RecurringTask:
    """Runs one `Recurring` in this process, if no other process does. *owner* is unique per process life."""

    def __init__(
        self,
        recurring: Recurring,
        call: Callable[[datetime, Context[Any]], Awaitable[Any]],
        *,
        outgoing: Outgoing,
        parts: Parts,
        resources: Mapping[str, Any],
        owner: str,
    ) -> None:
        assert outgoing.store is not None
        self._recurring = recurring
        self._name = f"{outgoing.group}.{recurring.name}"
        self._group = outgoing.group
        self._call = call
        self._store = outgoing.store
        self._outgoing = outgoing
        self._clock = parts.clock
        self._jitter = parts.jitter
        self._resources = resources
        self._owner = owner
        self._stopping = asyncio.Event()
        self._failures = 0

    async def run(self) -> None:
        """Until `stop`: wait for the next due time, and run what is due if nobody else does.

        Raises:
            StoreRefused: a person must change something first.
        """
        while not self._stopping.is_set():
            try:
                wait = await self._look()
                self._failures = 0
            except StoreRefused:
                raise
            except Exception as error:  # the function is the user's, the store may be down: told, and tried again
                wait = self._note_failure(error)
            await self._pause(min(wait, _LONGEST_WAIT))  # the wall clock may jump: look again now and then

    def stop(self) -> None:
        """Let `run` return after the run it is in."""
        self._stopping.set()

    async def _look(self) -> timedelta:
        """Run what is due; return how long there is nothing to do."""
        recurring, now = self._recurring, self._clock.now_us()
        due, mine = await self._store.timetable.claim(
            self._name,
            recurring.rule.text,
            first=microseconds(recurring.rule.after(moment(now))),
            now=now,
            owner=self._owner,
            lease=recurring.timeout + _LEASE_MARGIN,
        )
        if due > now:
            return timedelta(microseconds=due - now)
        if not mine:
            return _LOOK_AGAIN
        run, following = plan_run(recurring.rule, due=moment(due), now=moment(now), missed=recurring.missed, late=_LATE)
        await self._happen(run, due=due, to=microseconds(following))
        return ZERO

    async def _happen(self, run: datetime | None, *, due: int, to: int) -> None:
        """Call the function for *run* and move on to *to*, in one unit; with None only move on."""
        unit = self._store.unit(label=self._name)
        try:
            if run is not None:
                context: Context[Any] = Context(
                    message=self._message(run), attempt=self._failures + 1, unit=unit, _publish=self._outgoing.publish,
                    resources=self._resources,
                )  # fmt: skip
                async with asyncio.timeout(self._recurring.timeout.total_seconds()):
                    returned = await self._call(run, context)
                if returned is not None:
                    await self._outgoing.publish_returned(context, returned, self._recurring.name)
            await self._store.timetable.advance(unit, self._name, owner=self._owner, due=due, to=to)
            await (await unit.seal())
        except AlreadyMarked:
            await unit.rollback()
            _logger.warning("tidewire.recurring.overtaken", extra={"name_of": self._name})
        except BaseException:
            await unit.rollback()
            raise
        else:
            fields = {"name_of": self._name, "due": moment(due).isoformat(), "skipped": run is None}
            _logger.info("tidewire.recurring.ran", extra=fields)

    def _message(self, run: datetime) -> Message:
        """What the run's events are caused by: it has the same id in every process."""
        stamp = run.isoformat()
        event_id = derived_id(self._group, self._name, "recurring", microseconds(run))
        headers = {
            "ce-specversion": "1.0",
            "ce-id": event_id,
            "ce-source": self._group,
            "ce-type": "tidewire.recurring.due",
            "ce-time": stamp,
            "ce-subject": self._recurring.name,
        }
        return Message(Topic("tidewire.recurring"), event_id, self._group, None, headers, b"")

    def _note_failure(self, error: Exception) -> timedelta:
        self._failures += 1
        fields = {"name_of": self._name, "failures": self._failures, "error_type": type(error).__name__}
        _logger.error("tidewire.recurring.failed", extra=fields, exc_info=error)
        return self._jitter.between(ZERO, delay_ceiling(self._recurring.retry, self._failures))

    async def _pause(self, wait: timedelta) -> None:
        await happens(self._stopping, wait.total_seconds())
