"""What a case of the suites says of an error that it demands; they run without pytest as well."""

from __future__ import annotations

__all__ = ["raises"]


class raises:  # reads like the function it stands in for
    """Demand that the block raises one of *kinds*."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds
        self.error: BaseException | None = None

    def __enter__(self) -> raises:
        """Begin the block; afterwards *error* is what was raised."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """Swallow what was expected; anything else rises."""
        assert kind is not None, f"none of {', '.join(one.__name__ for one in self._kinds)} was raised"
        self.error = error
        return issubclass(kind, self._kinds)
