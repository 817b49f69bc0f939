"""When to try again, when to give up: pure decisions over counts, and the one table of which error means what."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from tidewire.chance import Jitter
from tidewire.errors import (
    ConfigurationError,
    DependencyUnavailable,
    Reject,
    RetryAfter,
    StoreRefused,
    StoreUnavailable,
    TransactionLost,
    TransportRefused,
    TransportUnavailable,
)
from tidewire.model import DeadLetter, Failure, Outcome, Reason, RetryLater, Unavailable

__all__ = ["Retry", "RetryBudget", "decide", "delay_ceiling", "outage_delay", "raised_at", "remember"]

_NOTHING = timedelta(0)
_OUTAGE_MAX = timedelta(seconds=30)
_OUTAGE_FIRST = timedelta(milliseconds=100)
_TEXT_MAX = 1_024
_OTHERS_FAULT = (
    StoreUnavailable, StoreRefused, TransportUnavailable, TransportRefused, TransactionLost, DependencyUnavailable,
)  # fmt: skip


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how patiently a failing event is tried.

    *attempts* counts handler calls, the first included; 1 means no retry. The n-th wait is drawn uniformly from
    zero to ``first_delay * factor ** (n - 1)``, at most *max_delay* (full jitter).

    Raises:
        ConfigurationError: attempts below 1, a negative delay, or a factor below 1.
    """

    attempts: int = 6
    first_delay: timedelta = timedelta(seconds=1)
    factor: float = 4.0
    max_delay: timedelta = timedelta(minutes=10)

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_delay < _NOTHING or self.max_delay < _NOTHING or not self.factor >= 1:
            raise ConfigurationError(
                f"this retry policy cannot be: {self}",
                hint="attempts ≥ 1, delays ≥ 0 and factor ≥ 1; attempts=1 means no retry",
            )


def delay_ceiling(policy: Retry, failures: int) -> timedelta:
    """Return the longest wait after the *failures*-th failure (1 is the first)."""
    try:
        return min(policy.first_delay * policy.factor ** (failures - 1), policy.max_delay)
    except OverflowError:
        return policy.max_delay


class RetryBudget:
    """Retries may be a fifth of what is processed; beyond that they are slowed down, never dropped.

    A burst of *burst* retries is always allowed, so that a handful of failures in a quiet service waits no longer
    than its policy says. `spend` returns the factor by which a wait is stretched: 1.0 within the budget.
    """

    def __init__(self, *, share: float = 0.2, burst: int = 100, stretch: float = 4.0) -> None:
        self._share, self._burst, self._stretch = share, float(burst), stretch
        self._tokens = float(burst)

    def earn(self, processed: int) -> None:
        """Note that *processed* events were handled."""
        self._tokens = min(self._burst, self._tokens + processed * self._share)

    def spend(self) -> float:
        """Take one retry out of the budget and return the stretch for its wait."""
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 1.0
        return self._stretch


def decide(error: BaseException, *, failures: int, policy: Retry, jitter: Jitter, stretch: float = 1.0) -> Outcome:
    """Turn what a handler raised into an outcome; *failures* counts this one.

    A `Reject` is a dead letter at once. A database, registry, broker or other dependency that is down or refuses us
    is `Unavailable`: never counted. Anything else is tried again until the policy's attempts are used up.
    """
    if isinstance(error, Reject):
        return DeadLetter(Reason.PERMANENT, error.message, error)
    if isinstance(error, _OTHERS_FAULT):
        return Unavailable(_OUTAGE_FIRST, error)
    if failures >= policy.attempts:
        return DeadLetter(Reason.EXHAUSTED, f"failed {failures} times; the last error: {describe(error)}", error)
    if isinstance(error, RetryAfter):
        return RetryLater(error.delay, error)
    ceiling = delay_ceiling(policy, failures) * stretch
    return RetryLater(jitter.between(_NOTHING, ceiling), error)


def outage_delay(outages: int, jitter: Jitter) -> timedelta:
    """Return how long a subscription pauses after *outages* consecutive findings that something is down."""
    ceiling = min(_OUTAGE_FIRST * 2 ** min(outages, 16), _OUTAGE_MAX)
    return jitter.between(ceiling / 2, ceiling)


def describe(error: BaseException) -> str:
    """Return type and message of *error* in at most 1 KiB; the message of a foreign error is kept, not trusted.

    It travels in headers, so what cannot be written as UTF-8 (an undecodable file name) is escaped.
    """
    kind = type(error).__name__
    try:
        text = f"{kind}: {error}"
    except Exception:
        text = f"{kind}, whose text cannot be read"
    text = text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


def raised_at(error: BaseException) -> str:
    """Return the place where *error* was raised (``shop/billing.py:17 in charge``), its last three folders and no
    message: it goes to logs, where payloads have no place. Empty for an error that was never raised."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    path = "/".join(code.co_filename.replace("\\", "/").split("/")[-3:])
    return f"{path}:{trace.tb_lineno} in {code.co_name}"


def remember(failure: Failure | None, error: BaseException, *, now_us: int) -> Failure:
    """Return *failure* with one more failed attempt. Its size does not grow with their number."""
    text, kind = describe(error), type(error).__name__
    if failure is None or failure.failures == 0:
        return Failure(failures=1, first_error=text, last_error=text, first_at=now_us, last_at=now_us, counts={kind: 1})
    counts = dict(failure.counts)
    if kind not in counts and len(counts) >= 16:
        kind = "other"
    counts[kind] = counts.get(kind, 0) + 1
    return msgspec.structs.replace(
        failure, failures=failure.failures + 1, starts=0, last_error=text, last_at=now_us, counts=counts
    )
