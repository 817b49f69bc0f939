"""From bytes to an outcome: decode, once only, handler, transaction. The one place where errors become outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from hashlib import blake2b
from typing import Any

import msgspec

from tidewire.errors import (
    AlreadyMarked,
    ConfigurationError,
    DecodeError,
    LaneFenced,
    StoreRefused,
    StoreUnavailable,
    TransactionLost,
)
from tidewire.model import (
    DeadLetter,
    Delivery,
    Failure,
    Guard,
    Handled,
    InboxChannel,
    Mark,
    Message,
    Reason,
    Unavailable,
)
from tidewire.protocols import Store, Unit
from tidewire.rules.cloudevents import from_structured, is_structured
from tidewire.rules.letters import DISCARDED, FAILURE, failure_in, topic_of
from tidewire.rules.plain import PlainTopic, Unmapped, read_plain
from tidewire.rules.retry import RetryBudget, decide, remember
from tidewire.runtime.context import Context
from tidewire.runtime.enlisted import SettleWith
from tidewire.runtime.outgoing import Outgoing
from tidewire.runtime.parts import Parts
from tidewire.runtime.plan import Bound, Plan, Route
from tidewire.runtime.work import Ran, Together, Work

__all__ = ["Pipeline"]

_HANDLED = Handled()
_RAN = Ran(_HANDLED)
_NAMELESS = "the message has no ce-id or no ce-source: this is not a CloudEvent"


class Pipeline:
    """What one group does with its deliveries. Shared by the workers of a process; holds no delivery."""

    def __init__(
        self,
        *,
        group: str,
        plan: Plan,
        outgoing: Outgoing,
        store: Store | None,
        parts: Parts,
        resources: Mapping[str, Any],
    ) -> None:
        self._group = group
        self._routes = plan.routes
        self._plains = plan.plains
        self._outgoing = outgoing
        self._store = store
        self._clock = parts.clock
        self._jitter = parts.jitter
        self._resources = resources
        self._budget = RetryBudget()
        self.guards: dict[str, Guard] = {}
        self.settle_with: SettleWith | None = None
        self.run = 0

    # --- before running: what is this, and has it happened already? ---------------------------------------

    async def admit(self, works: Sequence[Work]) -> list[Work]:
        """Route *works* and look up which handlers have taken effect; return those nobody here asked for.

        The rest has either something *todo*, a *verdict*, or neither: it has happened before.

        Raises:
            StoreUnavailable: the marks cannot be read now; nothing was changed.
        """
        skipped: list[Work] = []
        asked: list[tuple[Work, Bound]] = []
        routes, store = self._routes, self._store
        for work in works:
            message = work.delivery.message
            if type(message.to) is InboxChannel and DISCARDED in message.headers:
                work.discarded = True
                continue
            route = routes.get(message.headers.get("ce-type", ""))
            if route is None:
                route = self._unrouted(work)
                if route is None:
                    if work.verdict is None:
                        skipped.append(work)
                    continue
            work.route = route
            if not (work.delivery.message.id and work.delivery.message.source):  # it would be known by another's mark
                work.verdict = DeadLetter(Reason.UNDECODABLE, _NAMELESS)
                continue
            if FAILURE in message.headers and type(message.to) is InboxChannel:  # in a topic anybody may say anything
                work.failure = failure_in(message.headers)
            work.todo = route.handlers
            if store is not None:
                asked += [(work, bound) for bound in route.handlers]
        if store is not None and asked:
            await self._drop_known(store, asked)
        return skipped

    async def look_again(self, work: Work) -> None:
        """Drop from *todo* what has taken effect since `admit`: another copy of the event may have been handled.

        Raises:
            StoreUnavailable: the marks cannot be read now; nothing was changed.
        """
        if self._store is not None and work.todo:
            await self._drop_known(self._store, [(work, bound) for bound in work.todo])

    def _unrouted(self, work: Work) -> Route | None:
        """Deal with a delivery whose headers name no type we know: structured mode, somebody else's, or nobody's."""
        delivery = work.delivery
        headers = delivery.message.headers
        if "ce-type" in headers:
            return None
        if is_structured(headers.get("content-type", "")):
            try:
                work.delivery = _unwrapped(delivery)
                work.original = _named(delivery, work.delivery.message)
            except DecodeError as error:
                work.verdict = DeadLetter(Reason.UNDECODABLE, str(error), error)
                return None
            return self._routes.get(work.delivery.message.headers["ce-type"])
        plain = self._plains.get(topic_of(delivery.message.to))
        if plain is not None:
            return self._mapped(work, plain)
        work.verdict = DeadLetter(
            Reason.UNKNOWN_TYPE, "the message has no ce-type header and is not a structured CloudEvent"
        )
        return None

    def _mapped(self, work: Work, plain: PlainTopic) -> Route | None:
        """Make an event of a plain message, as its topic's declaration says; what is kept of it is as it came."""
        delivery = work.delivery
        mapped = read_plain(plain, delivery)
        if isinstance(mapped, Unmapped):
            work.delivery = work.original = msgspec.structs.replace(delivery, message=mapped.original)
            work.verdict = DeadLetter(mapped.reason, mapped.detail)
            return None
        if mapped.event is None:
            return None
        original, event = mapped.original, mapped.event
        route = self._routes.get(event.headers["ce-type"])
        if route is not None and route.ordering == "key" and event.key is None:
            try:
                key = _own_key(route, event)
            except ConfigurationError as error:
                work.verdict = DeadLetter(Reason.UNDECODABLE, error.message)
                key = None
            if key is not None:
                headers = {**event.headers, "ce-partitionkey": key}
                event = msgspec.structs.replace(event, key=key, headers=headers)
                original = msgspec.structs.replace(original, key=key)
        work.delivery = msgspec.structs.replace(delivery, message=event)
        work.original = msgspec.structs.replace(delivery, message=original)
        return None if work.verdict is not None else route

    async def _drop_known(self, store: Store, asked: Sequence[tuple[Work, Bound]]) -> None:
        marks = [self._mark(work.delivery.message, bound) for work, bound in asked]
        digests = await store.inbox.known(marks)
        for (work, bound), digest in zip(asked, digests, strict=True):
            if digest is None:
                continue
            if digest != _digest(work.delivery.message.body):
                work.verdict = DeadLetter(
                    Reason.CONFLICT, "an event with this source and id, but another body, has taken effect"
                )
            work.todo = [other for other in work.todo if other is not bound]

    def _mark(self, message: Message, bound: Bound) -> Mark:
        return Mark(self._group, bound.handler.name, self.run, message.source, message.id)

    # --- running -------------------------------------------------------------------------------------------

    async def process(self, work: Work) -> Ran:
        """Run the handlers that are to do, in one unit, and say what came of it. Raises only when cancelled."""
        route = work.route
        assert route is not None
        delivery = work.delivery
        message = delivery.message
        try:
            decode = route.decoders[message.headers.get("ce-schemaversion", "1")]
        except KeyError:
            return Ran(_unknown_version(route, message))
        try:
            event = decode(message.body)
        except DecodeError as error:
            return Ran(DeadLetter(Reason.UNDECODABLE, str(error), error))
        store = self._store
        unit = None if store is None else store.unit(self.guards.get(delivery.lane), label=route.type)
        failures = 0 if work.failure is None else work.failure.failures
        context: Context[Any] = Context(
            message=message,
            attempt=delivery.attempt + failures,
            unit=unit,
            _publish=self._outgoing.publish,
            resources=self._resources,
        )
        work.context = context
        bound: Bound | None = None
        work.cancellable = True
        try:
            for bound in work.todo:
                returned = await bound.call(event, context)
                if returned is not None:
                    await self._outgoing.publish_returned(context, returned, bound.name)
                if store is not None and unit is not None:
                    await store.inbox.mark(unit, self._mark(message, bound), _digest(message.body))
            if unit is None:
                ran = Ran(_HANDLED, messages=context.outgoing) if context.outgoing else _RAN
            else:
                self._enlist(unit, [work])
                ran = Ran(_HANDLED, await unit.seal())
            work.cancellable = False
            return ran
        except (KeyboardInterrupt, GeneratorExit):
            raise  # not a handler's: a person ends the process, or the loop is gone
        except BaseException as error:
            work.cancellable = False
            if unit is not None:
                await unit.rollback()
            if isinstance(error, DecodeError) and error is context.unreadable:  # no retry makes it another
                return Ran(DeadLetter(Reason.UNDECODABLE, str(error), error))
            return await self._failed(work, error, bound)

    async def process_batch(self, works: Sequence[Work]) -> Ran | None:
        """Run the one handler of *works*, all of one lane, over their events in one unit, and say what came of it.

        None: something is wrong with one of them or with all; they are to be run one by one, each with its own
        outcome, and this run counts for none. Raises only when cancelled.
        """
        lead = works[0]
        route = lead.route
        assert route is not None
        messages = [work.delivery.message for work in works]
        try:
            events = [route.decoders[one.headers.get("ce-schemaversion", "1")](one.body) for one in messages]
        except (KeyError, DecodeError):
            return None
        bound = route.handlers[0]
        store = self._store
        unit = None if store is None else store.unit(self.guards.get(lead.delivery.lane), label=route.type)
        attempt = max(work.delivery.attempt for work in works)
        context: Context[Any] = Context(
            message=messages[0],
            attempt=attempt,
            unit=unit,
            _publish=self._outgoing.publish,
            resources=self._resources,
            _batch=messages,
        )
        lead.context = context
        lead.cancellable = True
        try:
            returned = await bound.call_many(events, context)
            if returned is not None:
                await self._outgoing.publish_returned(context, returned, bound.name)
            if store is None or unit is None:
                return Ran(_HANDLED)
            for message in messages:
                await store.inbox.mark(unit, self._mark(message, bound), _digest(message.body))
            self._enlist(unit, works)
            return Ran(_HANDLED, Together(await unit.seal()))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            lead.cancellable = False
            if unit is not None:
                await unit.rollback()
            return self._batch_failed(works, _own_failure(lead, error), bound)
        finally:
            lead.cancellable = False

    def _enlist(self, unit: Unit, works: Sequence[Work]) -> None:
        """Let the commit of *unit* settle what leaves nothing else behind in the store: that is freed at the ack."""
        if self.settle_with is None:
            return
        plain = [one.original for one in works if not (one.alone or one.started or one.stored or one.held_row)]
        if plain:
            self.settle_with(unit, plain)

    def _batch_failed(self, works: Sequence[Work], error: BaseException, bound: Bound) -> Ran | None:
        if isinstance(error, LaneFenced):
            for work in works:
                work.gone = True
            return Ran(_HANDLED)
        outcome = decide(error, failures=0, policy=bound.handler.retry, jitter=self._jitter)
        return Ran(outcome) if isinstance(outcome, Unavailable) else None

    async def failed(self, work: Work, error: Exception) -> Ran:
        """Say what comes of *work*, whose handlers have ended well, but what they returned cannot be published."""
        return await self._failed(work, error, work.todo[-1])

    async def _failed(self, work: Work, error: BaseException, bound: Bound | None) -> Ran:
        """Turn what was raised into an outcome. Cancellation by us rises; a handler's own is its failure."""
        error = _own_failure(work, error)
        if isinstance(error, AlreadyMarked):
            try:
                return Ran(_HANDLED, await self._what_is_open())
            except (StoreUnavailable, StoreRefused, TransactionLost) as down:
                return Ran(Unavailable(timedelta(0), down))
        if isinstance(error, LaneFenced):
            work.gone = True
            return Ran(_HANDLED)
        assert bound is not None
        policy = bound.handler.retry
        outcome = decide(error, failures=1, policy=policy, jitter=self._jitter)
        if isinstance(outcome, Unavailable):
            return Ran(outcome)
        try:
            failure = work.failure = await self._remember(work, error)
        except (StoreUnavailable, StoreRefused) as down:
            return Ran(Unavailable(timedelta(0), down))
        stretch = self._budget.spend()
        outcome = decide(error, failures=failure.failures, policy=policy, jitter=self._jitter, stretch=stretch)
        return Ran(outcome, failed=bound)

    async def _what_is_open(self) -> Awaitable[None] | None:
        """The mark may be in a commit that is still on its way: no ack before that is durable."""
        if self._store is None:
            return None
        unit = self._store.unit()
        try:
            await unit.begin()
            return await unit.seal()
        except BaseException:
            await unit.rollback()
            raise

    async def _remember(self, work: Work, error: BaseException) -> Failure:
        """Count a failure: from the header when it was moved, from the store when it was held by another life."""
        message = work.delivery.message
        earlier = work.failure
        if self._store is None or work.key is None or not message.id:
            return remember(earlier, error, now_us=self._clock.now_us())
        attempts = self._store.attempts
        if not work.stored:
            known = await attempts.get(self._group, message.source, message.id)
            if known is not None and (earlier is None or known.failures > earlier.failures):
                earlier = known
        failure = remember(earlier, error, now_us=self._clock.now_us())
        await attempts.fail(self._group, message.source, message.id, failure)
        work.stored = True
        return failure

    def earned(self, count: int) -> None:
        """Note that *count* events were handled, for the retry budget."""
        self._budget.earn(count)


def _own_failure(work: Work, error: BaseException) -> BaseException:
    """Return what a handler failed with: a cancellation that is its timeout's becomes one; one that is ours rises,
    whatever the handler has made of it."""
    if work.cut_off:
        raise asyncio.CancelledError from error
    if not isinstance(error, asyncio.CancelledError):
        return error
    task = asyncio.current_task()
    if work.timed_out and task is not None:
        work.timed_out = False
        task.uncancel()
        seconds = work.route.seconds_max if work.route is not None else 0
        error = TimeoutError(f"the handler ran longer than its timeout of {timedelta(seconds=seconds)}")
    if task is not None and task.cancelling():
        raise error
    return error


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()


def _unknown_version(route: Route, message: Message) -> DeadLetter:
    version = message.headers.get("ce-schemaversion", "1")
    known = ", ".join(sorted(route.decoders))
    return DeadLetter(
        Reason.UNKNOWN_VERSION, f"{route.type} version {version[:20]!r}: this service understands version {known}"
    )


def _own_key(route: Route, message: Message) -> str | None:
    """Return the key that the event itself says; None too where it cannot be read, which is told when it is to run.

    Raises:
        ConfigurationError: the key is no text, number, UUID or enum.
    """
    decode = route.decoders.get(message.headers["ce-schemaversion"])
    try:
        return None if decode is None else route.handlers[0].handler.event.key_of(decode(message.body))
    except DecodeError:
        return None


def _named(delivery: Delivery, event: Message) -> Delivery:
    """Return a delivery as it came, under the id, source and key of the event inside: so it travels on."""
    message = msgspec.structs.replace(delivery.message, id=event.id, source=event.source, key=event.key)
    return msgspec.structs.replace(delivery, message=message)


def _unwrapped(delivery: Delivery) -> Delivery:
    """Return a structured-mode delivery in binary mode.

    Raises:
        DecodeError: its body is not a CloudEvent.
    """
    message = delivery.message
    headers, body = from_structured(message.body)
    rest = {name: value for name, value in message.headers.items() if name != "content-type"}
    unwrapped = msgspec.structs.replace(
        message,
        id=headers["ce-id"],
        source=headers["ce-source"],
        key=headers.get("ce-partitionkey", message.key),
        headers={**rest, **headers},
        body=body,
    )
    return msgspec.structs.replace(delivery, message=unwrapped)
