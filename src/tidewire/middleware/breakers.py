"""Leave a dependency alone while it is down, and let nothing fail for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from datetime import timedelta
from typing import Literal, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from tidewire.errors import ConfigurationError, DependencyUnavailable, TidewireError
from tidewire.model import ZERO, Message

__all__ = ["CircuitBreaker", "circuit_breaker"]

CircuitState: TypeAlias = Literal["closed", "half-open", "open"]
Errors: TypeAlias = type[Exception] | tuple[type[Exception], ...]

_WORST_FIRST: tuple[CircuitState, ...] = ("open", "half-open", "closed")
_COURTESY = 0.05
# The breakers that the running call has passed: what a handler's domain events run passes with it.
_passed: ContextVar[tuple[CircuitBreaker, ...]] = ContextVar("tidewire_breakers_passed", default=())


class About(Protocol):
    """What is needed of a context."""

    @property
    def message(self) -> Message:
        """The message of the event."""
        ...

    def waiting(self) -> AbstractContextManager[None]:
        """Stop the clock of the handler's timeout."""
        ...


E = TypeVar("E")
C = TypeVar("C", bound=About)
R = TypeVar("R")


def circuit_breaker(
    name: str,
    *,
    failures: int = 5,
    window: timedelta = timedelta(minutes=1),
    reset_after: timedelta = timedelta(seconds=30),
    counts: Errors = (ConnectionError, TimeoutError),
) -> CircuitBreaker:
    """Return a middleware that stands between handlers and the dependency *name*; it begins *closed*.

    It opens when *failures* different events have failed with one of *counts* inside *window*, and no event has been
    handled well in between: one event that always fails cannot open it, nor can a few among many good ones.
    Open, it raises `DependencyUnavailable` in place of the call, for *reset_after*; that is nobody's failure: no
    attempt is spent, the subscription pauses, order is kept. Then it is half-open: one event is let through. If that
    is handled well, the breaker closes; if it fails with one of *counts*, it opens anew, and that is not counted
    either. What is raised otherwise (a bug, a cancellation, any `TidewireError` such as `Reject`) says nothing about
    the dependency. With ``failures=1`` a single event that always fails so can keep the subscription waiting.

    A handler that hangs is cut off from outside, by the timeout of its registration, and so is not counted: put
    `timeout` inside the breaker. One object is one dependency: give it to every handler that uses it.

    Raises:
        ConfigurationError: no name, failures below 1, a time not above zero, or *counts* is not of error classes.
    """
    kinds = counts if isinstance(counts, tuple) else (counts,)
    if not kinds or not all(map(_is_error, kinds)):
        raise ConfigurationError(
            f"circuit_breaker {name!r}: counts takes error classes, not {counts!r}",
            hint="those of the client that talks to it; tidewire's own errors never count",
        )
    if not name or failures < 1 or window <= ZERO or reset_after <= ZERO:
        raise ConfigurationError(
            f"circuit_breaker {name!r}: failures={failures}, window={window}, reset_after={reset_after} cannot be",
            hint="it has a name, failures ≥ 1, and times above zero",
        )
    return CircuitBreaker(name, failures=failures, window=window, reset_after=reset_after, counts=kinds)


class CircuitBreaker:
    """See `circuit_breaker`."""

    __slots__ = ("_circuits", "_counts", "_failures", "_reset_after", "_window", "name")

    def __init__(
        self,
        name: str,
        *,
        failures: int,
        window: timedelta,
        reset_after: timedelta,
        counts: tuple[type[Exception], ...],
    ) -> None:
        self.name = name
        self._failures = failures
        self._window = window.total_seconds()
        self._reset_after = reset_after.total_seconds()
        self._counts = counts
        self._circuits: WeakKeyDictionary[asyncio.AbstractEventLoop, Circuit] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"circuit_breaker({self.name!r}: {self.state})"

    @property
    def state(self) -> CircuitState:
        """``closed``, ``open`` or ``half-open`` (one event is on trial); the worst, if several event loops use it."""
        states = {circuit.state for loop, circuit in list(self._circuits.items()) if not loop.is_closed()}
        for state in _WORST_FIRST:
            if state in states:
                return state
        return "closed"

    def __call__(self, handle: Callable[[E, C], Awaitable[R]]) -> Callable[[E, C], Awaitable[R]]:
        async def guarded(event: E, context: C) -> R:
            passed = _passed.get()
            if self in passed:
                return await handle(event, context)
            circuit, event_name = self._here(), _name(context.message)
            if circuit.failed_trial == event_name and circuit.due():
                with context.waiting():  # it failed the last trial: another goes first, if there is another
                    await asyncio.sleep(_COURTESY)
            trial = circuit.admit()
            if trial is None:
                raise DependencyUnavailable(f"{self.name} is down: its circuit breaker is {circuit.state}")
            token = _passed.set((*passed, self))
            try:
                result = await handle(event, context)
            except TidewireError:  # a verdict, or word from the store: never of this dependency
                raise
            except self._counts as error:
                if circuit.failed(event_name, trial=trial):
                    raise
                raise DependencyUnavailable(f"{self.name} is down: {type(error).__name__}") from error
            else:
                circuit.succeeded(trial=trial)
                return result
            finally:
                _passed.reset(token)
                if trial:
                    circuit.end_trial()

        return guarded

    def _here(self) -> Circuit:
        """The circuit of the running loop, whose clock it goes by."""
        loop = asyncio.get_running_loop()
        circuit = self._circuits.get(loop)
        if circuit is None:
            circuit = self._circuits[loop] = Circuit(self._failures, self._window, self._reset_after)
        return circuit


class Circuit:
    """The breaker's state: which events failed and when, while *closed*; since when it is *open*, and who failed then.

    Events are told apart by *name*, so that one that fails again and again counts as one.
    """

    __slots__ = ("_failed_at", "_failures", "_reset_after", "_until", "_window", "failed_trial", "state")

    def __init__(self, failures: int, window: float, reset_after: float) -> None:
        self._failures = failures
        self._window = window
        self._reset_after = reset_after
        self._failed_at: dict[Hashable, float] = {}
        self._until = 0.0
        self.state: CircuitState = "closed"
        self.failed_trial: Hashable = None

    def due(self) -> bool:
        """Whether it is open and the next event is to be tried."""
        return self.state == "open" and _now() >= self._until

    def admit(self) -> bool | None:
        """Whether a call that begins now is a trial; None if none may begin."""
        if self.state == "closed":
            return False
        if not self.due():
            return None
        self.state = "half-open"
        return True

    def succeeded(self, *, trial: bool) -> None:
        """A call ended well. While open, one that began before says nothing."""
        if trial:
            self.state = "closed"
            self.failed_trial = None
        if self.state == "closed":
            self._failed_at.clear()

    def failed(self, name: Hashable, *, trial: bool) -> bool:
        """A call failed as an outage would make it fail. Return whether that is the event's own failure."""
        if trial:
            self.failed_trial = name
            self._open()
        elif self.state == "closed":
            now = _now()
            self._failed_at.pop(name, None)
            self._failed_at[name] = now
            self._failed_at = {one: at for one, at in self._failed_at.items() if now - at <= self._window}
            if len(self._failed_at) >= self._failures:
                self._open()
        return self.state == "closed"

    def end_trial(self) -> None:
        """The trial is over. If it said nothing of the dependency, the next call is one."""
        if self.state == "half-open":
            self.state = "open"

    def _open(self) -> None:
        self.state = "open"
        self._until = _now() + self._reset_after
        self._failed_at.clear()


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, TidewireError)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _name(message: Message) -> Hashable:
    """Return what tells an event from others; one that came without an id, by its delivery."""
    return (message.source, message.id) if message.id else id(message)
