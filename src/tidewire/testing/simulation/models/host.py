"""A model as the broker of simulated processes: each has a link of its own, on which its weather strikes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal

from tidewire.runtime.parts import Parts
from tidewire.testing.simulation.clock import SimClock
from tidewire.testing.simulation.loop import Process, SimLoop
from tidewire.testing.simulation.models.links import Link, Server
from tidewire.testing.simulation.weather import Weather

__all__ = ["ModelHost"]


class ModelHost:
    """A `BrokerHost` over the server of a model."""

    def __init__(self, server: Server, loop: SimLoop) -> None:
        self.server = server
        self._loop = loop
        self._weather: Weather | None = None

    def under(self, weather: Weather) -> None:
        """From now on links are made under this weather."""
        self._weather = weather

    def clock_of(self, process: Process) -> SimClock | None:
        """Every process has a machine of its own."""
        return None

    def repeat(self, draw: float) -> bool:
        """Hand something out once more."""
        return self.server.repeat(draw)

    @asynccontextmanager
    async def open(self, process: Process, parts: Parts) -> AsyncGenerator[Any]:
        """Open the model's adapter. A process that dies keeps its link: what it has sent may still arrive."""
        assert self._weather is not None, "processes are started by a simulation, which has its weather"
        link = Link(self.server, _Line(self._weather, self._loop, process.name))
        try:
            async with self.server.open(link) as transport:
                yield transport
        finally:
            link.close()


class _Line:
    """The conditions of one process."""

    def __init__(self, weather: Weather, loop: SimLoop, name: str) -> None:
        self._weather = weather
        self._loop = loop
        self._name = name

    @property
    def away(self) -> bool:
        """Whether the broker is away, or the process is cut off from it."""
        return self._weather.broker_away or self._name in self._weather.cut_off

    def delay(self) -> float:
        """Draw the time on the way: mostly next to nothing."""
        return self._loop.latency(self._weather.latency)

    def strikes(self, kind: Literal["refused", "lost"]) -> bool:
        """Draw whether a request, or its answer, is lost."""
        weather, faults = self._weather, self._weather.faults
        if kind == "refused":
            return weather.strikes("request lost", faults.refused)
        return weather.strikes("answer lost", faults.lost_reply)
