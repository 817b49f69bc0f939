"""Users simulate their own services: one that is right passes, one that is not is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tidewire import ConfigurationError, Context, Service, event
from tidewire.testing.simulation import Faults, simulate


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """An order."""

    order_id: str


ORDERS = [OrderPlaced(str(number)) for number in range(6)]
CRASHES = Faults(crash_every=150.0)


def counting() -> Service:
    """Return a service that counts orders in its own database."""
    service = Service("counting")

    @service.on(OrderPlaced)
    async def count(order: OrderPlaced, context: Context[Any]) -> None:
        orders = await context.tx.get("orders", 0)
        await context.tx.put("orders", orders + 1)

    return service


def calling(calls: list[str]) -> Service:
    """Return a service whose effect is outside of its database."""
    service = Service("calling")

    @service.on(OrderPlaced)
    async def call(order: OrderPlaced, context: Context[Any]) -> None:
        calls.append(order.order_id)
        await context.tx.put(order.order_id, True)

    return service


def test_a_service_that_is_right_passes() -> None:
    """An effect in the service's own database happens once in every world."""

    async def check(stores: Mapping[str, Any]) -> None:
        assert stores["counting"].rows["orders"] == len(ORDERS)

    outcome = simulate([counting()], publish=ORDERS, check=check, seeds=range(20))
    outcome.demand()
    assert 20 == outcome.worlds
    assert outcome.kills > 0


def test_a_service_that_is_wrong_is_found() -> None:
    """An effect outside of the database happens twice in some world, and the user's check says so."""
    calls: list[str] = []

    async def check(stores: Mapping[str, Any]) -> None:
        assert sorted(set(calls)) == sorted(calls), f"called twice: {calls}"

    outcome = simulate([calling(calls)], publish=ORDERS, check=check, seeds=range(10), faults=CRASHES)
    with pytest.raises(AssertionError, match="called twice"):
        outcome.demand()
    assert [] == calls, "worlds run in children: nothing here has changed"


def test_a_service_that_loses_events_is_found() -> None:
    """A handler that ends the whole process with its error is named."""
    service = Service("broken")

    @service.on(OrderPlaced)
    async def explode(order: OrderPlaced) -> None:
        raise KeyError(order.order_id)

    outcome = simulate([service], publish=ORDERS[:1], seeds=range(1), faults=Faults())
    assert 0 == len(outcome.failures), "a dead letter is where a person can find it"


def test_a_handler_that_needs_a_thread_is_refused() -> None:
    """A ``def`` handler with a context would wait for ever, so it is refused with a hint."""
    service = Service("threaded")

    @service.on(OrderPlaced)
    def block(order: OrderPlaced, context: Any) -> None:
        context.tx.put(order.order_id, True)

    with pytest.raises(ConfigurationError, match="async def"):
        simulate([service], publish=ORDERS, seeds=range(1))
