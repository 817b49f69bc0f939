"""What a service may promise, computed from plain values."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire import Context, Header, Plain, Position, Retry, Service, domain_event, event
from tidewire.model import ZERO, Capabilities
from tidewire.rules.guarantees import Judgement, Terms, hold_limit, judge, ordered_topics
from tidewire.rules.letters import DEDUP_WINDOW


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """Has a key."""

    order_id: str


@event("shop.order.placed", key="order_id")
class OtherOrderPlaced:
    """The same type, another class."""

    order_id: str


@event("shop.order.viewed")
class OrderViewed:
    """Has no key, and shares the topic of those that have."""

    page: str


@event("shop.page.seen")
class PageSeen:
    """Has no key, on a topic of its own."""

    page: str


@domain_event
class Inside:
    """Never leaves."""

    name: str


BROKER = Capabilities(
    order=True, fencing=True, atomic=True, dedup=timedelta(days=7), native_attempts=True, replay=True, delay_max=None,
    lease=True, batch_max=None, durability="fsync", message_bytes_max=1 << 20, settle_window=None,
)  # fmt: skip
STORED = Terms(capabilities=BROKER, has_store=True)
STORELESS = Terms(capabilities=BROKER, has_store=False)
WINDOW = timedelta(minutes=30)


async def handle(one: Any) -> None:
    """Do nothing."""


async def writes(one: Any, context: Context) -> None:
    """Use the store."""
    await context.tx.execute("insert into x values (1)")


async def pays(orders: list[OrderPlaced]) -> list[OrderPlaced]:
    """Return events from a list."""
    return orders


def terms(base: Terms = STORED, /, **changed: Any) -> Terms:
    """Return *base* with some values, or some of its broker's, changed; *lease* is the setting."""
    known = set(Capabilities.__struct_fields__) - {"lease"}
    capabilities = msgspec.structs.replace(base.capabilities, **{k: v for k, v in changed.items() if k in known})
    rest = {name: value for name, value in changed.items() if name not in known}
    return msgspec.structs.replace(base, capabilities=capabilities, **rest)


def judged(cls: type, under: Terms = STORED, /, function: Callable[..., Any] = handle, **asked: Any) -> Judgement:
    """Judge a service of one handler."""
    service = Service("billing")
    service.on(cls, name="charge", **asked)(function)
    return judge("billing", service.handlers, terms=under)


def codes(judgement: Judgement) -> list[str]:
    """Return the findings' codes."""
    return [finding.code for finding in judgement.findings]


# --- what holds -----------------------------------------------------------------------------------------------------


def test_an_ordered_handler_with_a_store_is_promised_everything() -> None:
    """Exactly once, in order, fenced, held over a dead letter, repeats known for the dedup window; nothing to mend."""
    (one,) = judged(OrderPlaced).guarantees
    assert ("exactly once", "key", True, "hold_key") == (one.effect, one.ordering, one.fenced, one.on_dead_letter)
    assert (timedelta(minutes=10), DEDUP_WINDOW) == (one.max_hold, one.dedup)
    assert [] == codes(judged(OrderPlaced))


def test_without_a_store_effects_happen_at_least_once() -> None:
    """No marks: repeats are known only as far as the broker knows them, and the key's hold has no end of its own."""
    (one,) = judged(OrderPlaced, STORELESS, on_dead_letter="continue").guarantees
    assert ("at least once", "key", "continue") == (one.effect, one.ordering, one.on_dead_letter)
    assert (None, timedelta(days=7)) == (one.max_hold, one.dedup)


def test_an_event_without_a_key_has_no_order() -> None:
    """Not even on a topic that is read in order for others."""
    service = Service("billing")
    service.on(OrderPlaced, name="ordered")(handle)
    service.on(OrderViewed, name="viewed")(handle)
    service.on(PageSeen, name="seen")(handle)
    assert {"shop.order"} == ordered_topics(service.handlers)
    found = {
        one.handler: (one.ordering, one.on_dead_letter) for one in judge("b", service.handlers, terms=STORED).guarantees
    }
    assert {"ordered": ("key", "hold_key"), "viewed": ("none", "continue"), "seen": ("none", "continue")} == found


def test_the_schedule_is_the_retry_policys() -> None:
    """Five waits between six attempts; the longest life is all waits and all runs."""
    (one,) = judged(OrderPlaced, timeout=timedelta(seconds=10)).guarantees
    assert [1, 4, 16, 64, 256] == [wait.total_seconds() for wait in one.waits]
    assert timedelta(seconds=341 + 60) == one.longest


def test_domain_events_are_not_judged() -> None:
    """They never reach a broker."""
    assert ((), ()) == (tuple(judged(Inside).guarantees), tuple(judged(Inside).findings))


@given(st.integers(1, 50), st.integers(0, 10**6), st.floats(1, 100), st.integers(0, 10**6))
def test_no_policy_breaks_the_sums(attempts: int, first: int, factor: float, longest: int) -> None:
    """There is one wait fewer than attempts, none above the maximum, and the whole is their sum."""
    policy = Retry(
        attempts=attempts, first_delay=timedelta(seconds=first), factor=factor, max_delay=timedelta(seconds=longest)
    )
    (one,) = judged(PageSeen, retry=policy).guarantees
    assert attempts - 1 == len(one.waits)
    assert all(wait <= policy.max_delay for wait in one.waits)
    assert sum(one.waits, ZERO) == one.longest - one.timeout * attempts


@given(st.timedeltas(ZERO, timedelta(days=30)), st.none() | st.timedeltas(ZERO, timedelta(days=30)))
def test_a_hold_ends_well_before_the_broker_takes_the_event_back(asked: timedelta, window: timedelta | None) -> None:
    """At most three quarters of the settle window, and never longer than asked for."""
    limit = hold_limit(asked, window)
    assert limit <= asked
    assert window is None or limit <= window * 0.75


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "under", "asked", "code"),
    [
        (OrderPlaced, terms(order=False), {}, "no-order"),
        (OrderPlaced, STORELESS, {}, "order-without-store"),
        (OrderPlaced, STORELESS, {"on_dead_letter": "hold_key"}, "hold-without-store"),
        (OrderPlaced, terms(durability="none"), {}, "broker-not-durable"),
        (OrderPlaced, terms(store_durable=False), {}, "store-not-durable"),
        (OrderPlaced, terms(settle_window=timedelta(minutes=1)), {}, "timeout-beyond-window"),
        (
            OrderPlaced,
            terms(STORELESS, settle_window=timedelta(minutes=5)),
            {"on_dead_letter": "continue"},
            "hold-beyond-window",
        ),
        (PageSeen, terms(delay_max=ZERO), {}, "no-delay"),
        (
            PageSeen,
            STORED,
            {"retry": Retry(attempts=60, first_delay=timedelta(days=1), max_delay=timedelta(days=1))},
            "retry-beyond-dedup",
        ),
        (OrderPlaced, terms(retention={"shop.order": timedelta(days=36)}), {}, "replay-beyond-dedup"),
        (OrderPlaced, terms(retention={"shop.order": None}), {}, "replay-beyond-dedup"),
        (
            OrderPlaced,
            STORELESS,
            {"batch": 10, "function": pays, "on_dead_letter": "continue"},
            "batch-publishes",
        ),
    ],
)
def test_what_is_unsafe_is_refused(cls: type, under: Terms, asked: dict[str, Any], code: str) -> None:
    """Each unsafe setting is one error, which names its place and its fix."""
    judgement = judged(cls, under, **asked)
    assert ([code], False) == (codes(judgement), judgement.safe)
    (finding,) = judgement.findings
    assert ("error", True) == (finding.level, finding.where.startswith("billing"))
    assert "" != finding.fix


@pytest.mark.parametrize(
    ("cls", "under", "asked", "code"),
    [
        (OrderPlaced, terms(durability="os"), {}, "broker-not-synced"),
        (OrderPlaced, terms(lease=timedelta(seconds=1)), {}, "short-lease"),
        (OrderPlaced, terms(prefetch=10), {}, "prefetch-below-concurrency"),
        (OrderPlaced, terms(fencing=False), {}, "no-fencing"),
        (OrderPlaced, terms(marked=frozenset({"charge", "old"})), {}, "handler-vanished"),
        (PageSeen, STORED, {"on_dead_letter": "hold_key"}, "hold-without-order"),
        (PageSeen, STORELESS, {"function": writes}, "tx-without-store"),
    ],
)
def test_what_is_rarely_meant_is_warned_about(cls: type, under: Terms, asked: dict[str, Any], code: str) -> None:
    """A warning leaves the service safe."""
    judgement = judged(cls, under, **asked)
    assert ([("warning", code)], True) == ([(one.level, one.code) for one in judgement.findings], judgement.safe)


def test_what_fits_the_window_is_not_refused() -> None:
    """The rules about the settle window begin where it is too short, not where there is one."""
    assert [] == codes(judged(OrderPlaced, terms(settle_window=WINDOW)))
    assert [] == codes(judged(OrderPlaced, terms(STORELESS, settle_window=WINDOW), on_dead_letter="continue"))
    assert [] == codes(judged(OrderPlaced, terms(retention={"shop.order": DEDUP_WINDOW})))
    assert [] == codes(judged(PageSeen, terms(delay_max=ZERO), retry=Retry(attempts=1)))


def test_several_handlers_of_one_event() -> None:
    """Without a store each has to be repeatable, a batch handler has to be alone, and they share one class."""
    service = Service("billing")
    service.on(OrderPlaced, name="first", on_dead_letter="continue")(handle)
    service.on(OtherOrderPlaced, name="second", on_dead_letter="continue", repeatable=True, batch=5)(pays)
    found = {(one.where, one.code) for one in judge("billing", service.handlers, terms=STORELESS).findings}
    assert {
        ("billing.first", "several-without-store"),
        ("billing.second", "two-classes"),
        ("billing.second", "batch-not-alone"),
        ("billing.second", "batch-publishes"),
    } == found


def test_a_broker_without_leases_is_warned_about() -> None:
    """A cut-off process keeps its lanes until the broker notices."""
    broker = msgspec.structs.replace(BROKER, lease=False)
    assert ["no-lease"] == codes(judged(OrderPlaced, Terms(capabilities=broker, has_store=True)))


def test_recurring_runs_need_a_store() -> None:
    """Somebody has to remember when they are due."""
    assert ["recurring-without-store"] == codes(judge("billing", [], terms=STORELESS, recurring=["daily"]))
    assert [] == codes(judge("billing", [], terms=STORED, recurring=["daily"]))


def test_errors_come_first() -> None:
    """Whoever reads one line reads what matters."""
    judgement = judged(OrderPlaced, terms(STORELESS, lease=timedelta(seconds=1), durability="none"))
    levels = [finding.level for finding in judgement.findings]
    assert (sorted(levels), 3) == (levels, len(levels))


def test_a_position_is_no_id_where_it_does_not_last() -> None:
    """On a broker without a log a redelivery has another place: its effect would happen twice, so it is refused."""
    service = Service("billing")
    service.accept(Plain(OrderPlaced, id=[Header("message-id"), Position()]))

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None: ...

    def found(capabilities: Capabilities) -> list[str]:
        terms = msgspec.structs.replace(STORED, capabilities=capabilities)
        judgement = judge("billing", service.handlers, terms=terms, plains=service.plains.values())
        return [finding.code for finding in judgement.findings]

    assert [] == found(BROKER)
    assert ["plain-without-position"] == found(msgspec.structs.replace(BROKER, replay=False))


def test_plain_messages_need_a_handler() -> None:
    """What is accepted as an event that nobody takes would never be read."""
    service = Service("billing")
    service.accept(Plain(PageSeen, id=Position()))
    (finding,) = judge("billing", [], terms=STORED, plains=service.plains.values()).findings
    assert ("error", "plain-unhandled") == (finding.level, finding.code)
