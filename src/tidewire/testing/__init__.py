"""Testing services on a clock that jumps, and the conformance suites that every adapter passes.

`tidewire_world` and the pytest fixture ``tidewire`` run services with the real runtime; `run` gives a script or a
test its virtual time. The suites are in `tidewire.testing.transports` and beside it.
"""

from __future__ import annotations

from tidewire.testing.seen import DeadLetterSeen, Events
from tidewire.testing.virtual import VirtualClock, VirtualTimeLoop, run
from tidewire.testing.world import World, tidewire_world

__all__ = ["DeadLetterSeen", "Events", "VirtualClock", "VirtualTimeLoop", "World", "run", "tidewire_world"]
