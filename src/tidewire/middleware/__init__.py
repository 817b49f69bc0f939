"""Middleware: functions from a handler to a handler. One object is one limit, shared by whoever has it."""

from __future__ import annotations

from tidewire.middleware.breakers import CircuitBreaker, circuit_breaker
from tidewire.middleware.places import ConcurrencyLimit, concurrency_limit
from tidewire.middleware.rates import RateLimit, rate_limit
from tidewire.middleware.timeouts import Timeout, timeout

__all__ = [
    "CircuitBreaker",
    "ConcurrencyLimit",
    "RateLimit",
    "Timeout",
    "circuit_breaker",
    "concurrency_limit",
    "rate_limit",
    "timeout",
]
