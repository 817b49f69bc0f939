"""What a service may promise: computed from its registrations, what the broker declares, the store and the settings.

`refusals` holds for every start of a service, `judge` for one in production. A *finding* of level ``error`` is
unsafe and refused; a ``warning`` is safe, and rarely what is meant. `tidewire.rules.wording` says it in sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Literal, Protocol, TypeAlias

import msgspec

from tidewire.model import ZERO, Capabilities
from tidewire.rules.events import EventType
from tidewire.rules.findings import Finding
from tidewire.rules.functions import reads_tx, returned_events
from tidewire.rules.letters import DEDUP_WINDOW
from tidewire.rules.plain import PlainTopic
from tidewire.rules.retry import Retry, delay_ceiling

__all__ = [
    "Guarantee",
    "Judgement",
    "OnDeadLetter",
    "Ordering",
    "Terms",
    "hold_limit",
    "judge",
    "ordered_topics",
    "plain_refusals",
    "recurring_refusals",
    "refusals",
    "waits",
]

Ordering: TypeAlias = Literal["key", "none"]
OnDeadLetter: TypeAlias = Literal["hold_key", "continue"]

_Problem: TypeAlias = tuple[str, str, str]  # code, what, fix

_SHORT_LEASE = timedelta(seconds=5)
_SHARE_OF_WINDOW = 0.75


class Registered(Protocol):
    """A handler as it was registered, as far as these rules look at it."""

    @property
    def name(self) -> str:
        """Its name, as inbox marks hold it."""
        ...

    @property
    def function(self) -> Callable[..., object]:
        """What is called."""
        ...

    @property
    def event(self) -> EventType:
        """What it handles."""
        ...

    @property
    def retry(self) -> Retry:
        """How often and how patiently."""
        ...

    @property
    def timeout(self) -> timedelta:
        """When a run becomes a failure."""
        ...

    @property
    def ordering(self) -> Ordering | None:
        """What it asked for, or None: what its event suggests."""
        ...

    @property
    def on_dead_letter(self) -> OnDeadLetter | None:
        """What it asked for, or None: the default."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether it said that a repeat does no harm."""
        ...

    @property
    def batch(self) -> int:
        """How many events it takes at a time; 0 where it takes no list."""
        ...


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Under what a service runs: what its broker declares, its store, its settings.

    *store_durable*: the store keeps its rows beyond the process. *retention* of topics by name (None: for ever), for
    those that are known. *marked*: the handlers by which the store has inbox marks of this group.
    """

    capabilities: Capabilities
    has_store: bool
    store_durable: bool = True
    lease: timedelta = timedelta(seconds=30)
    grace: timedelta = timedelta(seconds=10)
    max_hold: timedelta = timedelta(minutes=10)
    concurrency: int = 64
    prefetch: int = 256
    retention: Mapping[str, timedelta | None] = msgspec.field(default_factory=dict[str, "timedelta | None"])
    marked: frozenset[str] = frozenset()


class Guarantee(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for the events of one type at one handler.

    *effect* in the store (other effects: always at least once) · *ordering* that is kept · *fenced*: a zombie can
    neither settle nor commit · *on_dead_letter*: what follows a dead letter of a key · *attempts*, the longest
    *waits* between them · *max_hold*: how long a failing key waits in the process (None: no key is held, or, without
    a store, until its last attempt) · *dedup*: how long a repeat is recognised (None: not at all).
    """

    handler: str
    event: EventType
    effect: Literal["exactly once", "at least once"]
    ordering: Ordering
    fenced: bool
    on_dead_letter: OnDeadLetter
    attempts: int
    waits: Sequence[timedelta]
    timeout: timedelta
    max_hold: timedelta | None
    dedup: timedelta | None
    batch: int

    @property
    def longest(self) -> timedelta:
        """How long it takes at most, waits and runs together, until the event is a dead letter."""
        return sum(self.waits, self.timeout * self.attempts)


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """The guarantees of a service's integration events, and what was found; errors come first."""

    guarantees: Sequence[Guarantee]
    findings: Sequence[Finding]

    @property
    def safe(self) -> bool:
        """Whether nothing has to be refused."""
        return not any(finding.level == "error" for finding in self.findings)


def _asked_ordering(handler: Registered) -> Ordering:
    """Return the ordering that *handler* asks for: what it says, else ``key`` where its event declares one."""
    return handler.ordering or ("key" if handler.event.key is not None else "none")


def ordered_topics(handlers: Iterable[Registered]) -> set[str]:
    """Return the topics in which some handler asks for order: they are read in order as a whole."""
    return {
        handler.event.topic
        for handler in handlers
        if handler.event.kind == "integration" and _asked_ordering(handler) == "key"
    }


def waits(policy: Retry) -> list[timedelta]:
    """Return the longest wait after each failure that is followed by another attempt."""
    return [delay_ceiling(policy, failures) for failures in range(1, policy.attempts)]


def hold_limit(max_hold: timedelta, settle_window: timedelta | None) -> timedelta:
    """Return how long a key may be held: at most three quarters of what a delivery may stay unsettled."""
    return max_hold if settle_window is None else min(max_hold, settle_window * _SHARE_OF_WINDOW)


def refusals(
    service: str, handlers: Sequence[Registered], *, ordering: Ordering, capabilities: Capabilities, has_store: bool
) -> list[Finding]:
    """Return why *service* cannot run with *handlers*, those of one event type, read in *ordering*."""
    return [
        _error(code, f"{service}.{handler.name}", what, fix)
        for handler in handlers
        for code, what, fix in [
            *_order_problems(handler, ordering, capabilities, has_store=has_store),
            *_shape_problems(handler, handlers, has_store=has_store),
        ]
    ]


def recurring_refusals(service: str, names: Iterable[str], *, has_store: bool) -> list[Finding]:
    """Return why *service* cannot run its recurring functions *names*."""
    what = "recurring runs need a store, which remembers when they are due"
    return (
        []
        if has_store
        else [_error("recurring-without-store", f"{service}.{name}", what, "give one") for name in names]
    )


def plain_refusals(
    service: str, plains: Iterable[PlainTopic], *, handlers: Iterable[Registered], capabilities: Capabilities
) -> list[Finding]:
    """Return why *service* cannot accept *plains*."""
    found: list[Finding] = []
    handled = {handler.event.cls for handler in handlers}
    for plain in plains:
        where = f"{service}, plain messages of {plain.topic}"
        if plain.needs_positions and not capabilities.replay:
            what = "their id is to be their position, and on this broker a message has another one when it comes again"
            found.append(_error("plain-without-position", where, what, "id= a header, a field or ContentHash()"))
        events = [event for event in plain.kinds.values() if event is not None]
        if not any(event.cls in handled for event in events):
            what = f"no handler takes {', '.join(event.type for event in events)}"
            found.append(_error("plain-unhandled", where, what, "register one with @service.on(…)"))
    return found


def judge(
    service: str,
    handlers: Iterable[Registered],
    *,
    terms: Terms,
    recurring: Iterable[str] = (),
    plains: Iterable[PlainTopic] = (),
) -> Judgement:
    """Return what *service* promises with *handlers* in production, and every finding about it."""
    handlers = [handler for handler in handlers if handler.event.kind == "integration"]
    ordered = ordered_topics(handlers)
    by_type: dict[str, list[Registered]] = {}
    for handler in handlers:
        by_type.setdefault(handler.event.type, []).append(handler)
    findings = _service_findings(service, terms) + recurring_refusals(service, recurring, has_store=terms.has_store)
    findings += plain_refusals(service, plains, handlers=handlers, capabilities=terms.capabilities)
    guarantees: list[Guarantee] = []
    for several in by_type.values():
        ordering: Ordering = "key" if several[0].event.topic in ordered else "none"
        findings += refusals(
            service, several, ordering=ordering, capabilities=terms.capabilities, has_store=terms.has_store
        )
        findings += _type_findings(service, several, ordering=ordering, terms=terms)
        guarantees += [_guarantee(handler, ordering, terms) for handler in several]
    for topic in dict.fromkeys(handler.event.topic for handler in handlers):
        findings += _horizon_problems(service, topic, terms)
    findings += _vanished(service, handlers, terms.marked)
    findings.sort(key=lambda finding: finding.level)  # stable, and "error" comes before "warning"
    return Judgement(guarantees=guarantees, findings=findings)


def _error(code: str, where: str, what: str, fix: str) -> Finding:
    return Finding(level="error", code=code, where=where, what=what, fix=fix)


def _warning(code: str, where: str, what: str, fix: str) -> Finding:
    return Finding(level="warning", code=code, where=where, what=what, fix=fix)


def _guarantee(handler: Registered, ordering: Ordering, terms: Terms) -> Guarantee:
    keyed = ordering == "key" and handler.event.key is not None
    hold: OnDeadLetter = "hold_key" if ordering == "key" and terms.has_store else "continue"
    return Guarantee(
        handler=handler.name,
        event=handler.event,
        effect="exactly once" if terms.has_store else "at least once",
        ordering="key" if keyed else "none",
        fenced=terms.capabilities.fencing,
        on_dead_letter=(handler.on_dead_letter or hold) if keyed else "continue",
        attempts=handler.retry.attempts,
        waits=waits(handler.retry),
        timeout=handler.timeout,
        max_hold=hold_limit(terms.max_hold, terms.capabilities.settle_window) if keyed and terms.has_store else None,
        dedup=DEDUP_WINDOW if terms.has_store else terms.capabilities.dedup,
        batch=handler.batch,
    )


# --- what is refused at every start ---------------------------------------------------------------------------------


def _order_problems(
    handler: Registered, ordering: Ordering, capabilities: Capabilities, *, has_store: bool
) -> list[_Problem]:
    found: list[_Problem] = []
    if ordering == "key" and not capabilities.order:
        found.append(("no-order", "this broker cannot keep order by key", 'say ordering="none"'))
    if handler.on_dead_letter == "hold_key" and not has_store:
        found.append(("hold-without-store", 'on_dead_letter="hold_key" needs a store', 'give one, or say "continue"'))
    if ordering == "key" and not has_store and handler.on_dead_letter is None:
        found.append(
            (
                "order-without-store",
                "ordered and without a store, so what follows a dead letter goes on",
                'give it a store (--store sqlite:///billing.db, TIDEWIRE_STORE), or say on_dead_letter="continue"',
            )
        )
    return found


def _shape_problems(handler: Registered, handlers: Sequence[Registered], *, has_store: bool) -> list[_Problem]:
    found: list[_Problem] = []
    first = handlers[0].event
    if handler.event.cls is not first.cls:
        found.append(
            (
                "two-classes",
                f"{first.type} is handled as {handler.event.cls.__qualname__} and as {first.cls.__qualname__}",
                "use one class, and @upcast for older versions",
            )
        )
    if len(handlers) > 1 and handler.batch:
        found.append(
            (
                "batch-not-alone",
                "a batch handler must be the only one of its event in a service",
                "handle the list in one function, or in a service of its own",
            )
        )
    if len(handlers) > 1 and not has_store and not handler.repeatable:
        found.append(
            (
                "several-without-store",
                f"{len(handlers)} handlers of {first.type} without a store: when one fails all run again",
                "say repeatable=True on each, or give the service a store",
            )
        )
    return found


# --- what production adds -------------------------------------------------------------------------------------------


def _service_findings(service: str, terms: Terms) -> list[Finding]:
    """Return what is wrong with the broker, the store and the settings for all handlers alike."""
    capabilities = terms.capabilities
    found: list[Finding] = []
    if capabilities.durability == "none":
        what = "this broker keeps nothing beyond its process: what publish has confirmed is lost when it ends"
        found.append(_error("broker-not-durable", service, what, "use sqlite:///path, which is synced to disk"))
    if capabilities.durability == "os":
        what = "this broker does not sync: a power loss takes what publish has confirmed"
        found.append(_warning("broker-not-synced", service, what, "use one that syncs, or replicates"))
    if terms.has_store and not terms.store_durable:
        what = "this store keeps nothing beyond its process, but the broker forgets what has been acked"
        found.append(_error("store-not-durable", service, what, "use sqlite:///path, which is synced to disk"))
    if not capabilities.lease:
        what = "this broker has no lease: what a cut-off process holds comes back only when the broker notices"
        found.append(_warning("no-lease", service, what, "keep its heartbeat short"))
    if terms.has_store and not capabilities.fencing:
        what = "this broker's lanes have no epochs, so a process that wakes up after its lease may still commit"
        fix = "effects stay exactly once by their marks; where the order of effects matters, use a broker that fences"
        found.append(_warning("no-fencing", service, what, fix))
    if terms.lease < _SHORT_LEASE:
        what = f"a lease of {terms.lease.total_seconds():g} s: a busy disk or a short stall hands its lanes to others"
        found.append(_warning("short-lease", service, what, "5 s or more; the default is 30"))
    if terms.prefetch < terms.concurrency:
        what = f"prefetch={terms.prefetch} is below concurrency={terms.concurrency}: so many handlers never run at once"
        fix = f"prefetch={terms.concurrency} or more, or a lower concurrency"
        found.append(_warning("prefetch-below-concurrency", service, what, fix))
    return found


def _type_findings(service: str, handlers: Sequence[Registered], *, ordering: Ordering, terms: Terms) -> list[Finding]:
    """Return what the times of one event type's handlers mean on this broker, and what does not fit together."""
    found: list[Finding] = []
    capabilities, window = terms.capabilities, terms.capabilities.settle_window
    together = sum((handler.timeout for handler in handlers), ZERO)
    for handler in handlers:
        where, policy = f"{service}.{handler.name}", waits(handler.retry)
        keyed = ordering == "key" and handler.event.key is not None
        if window is not None and together > window * _SHARE_OF_WINDOW:
            what = f"its run may take {together}, and the broker takes back after {window} what is not settled"
            found.append(_error("timeout-beyond-window", where, what, f"timeout={window * 0.5} or less"))
        if window is not None and keyed and not terms.has_store and sum(policy, together) > window * _SHARE_OF_WINDOW:
            what = f"without a store a key is held for all its attempts, up to {sum(policy, together)}, and the broker "
            fix = "give the service a store, fewer attempts, or shorter waits"
            found.append(_error("hold-beyond-window", where, f"{what}takes it back after {window}", fix))
        if not keyed and policy and capabilities.delay_max == ZERO:
            what = "this broker cannot keep an event back, so it cannot wait between attempts"
            found.append(_error("no-delay", where, what, "retry=Retry(attempts=1), or another broker"))
        if handler.on_dead_letter == "hold_key" and not keyed and terms.has_store:
            what = 'on_dead_letter="hold_key" without order by key: there is no key to hold'
            found.append(_warning("hold-without-order", where, what, "leave it out, or give the event a key"))
        if not terms.has_store and reads_tx(handler.function):
            what = "it seems to read context.tx, which raises: there is no store"
            found.append(_warning("tx-without-store", where, what, "give one: --store, TIDEWIRE_STORE"))
        if not terms.has_store and handler.batch and returned_events(handler.function):
            what = "a batch handler publishes only in a service with a store, and this one returns events"
            found.append(_error("batch-publishes", where, what, "give one: --store, TIDEWIRE_STORE"))
        if sum(policy, ZERO) > DEDUP_WINDOW:
            what = f"its attempts go on for up to {sum(policy, ZERO).days} days, and marks live for {DEDUP_WINDOW.days}"
            found.append(_error("retry-beyond-dedup", where, what, "fewer attempts, or a shorter max_delay"))
    return found


def _horizon_problems(service: str, topic: str, terms: Terms) -> list[Finding]:
    """A replay may go back as far as the topic is kept: no inbox mark may be gone by then."""
    if not terms.has_store or not terms.capabilities.replay or topic not in terms.retention:
        return []
    kept = terms.retention[topic]
    if kept is not None and kept <= DEDUP_WINDOW:
        return []
    how_long = "for ever" if kept is None else f"for {kept / timedelta(days=1):g} days"
    what = (
        f"topic {topic} is kept {how_long}, inbox marks for {DEDUP_WINDOW.days} days: "
        "what is replayed from before that takes effect again"
    )
    fix = f"keep the topic for at most {DEDUP_WINDOW.days} days; a service that may see old events anew has no store"
    return [_error("replay-beyond-dedup", service, what, fix)]


def _vanished(service: str, handlers: Sequence[Registered], marked: frozenset[str]) -> list[Finding]:
    known = {handler.name for handler in handlers}
    return [
        _warning(
            "handler-vanished",
            service,
            f"the store has inbox marks of handler {name!r}, which is not there any more",
            f"if it was renamed, give it name={name!r}, or what it has handled may be handled again",
        )
        for name in sorted(marked - known)
    ]
