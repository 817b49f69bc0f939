"""``tidewire crashtest``: a service with one crash at every point, and which of its handlers repeat an effect.

`effect` notes an effect outside of the service's database; `crash_test` runs it all. See docs/crashtest.md.
"""

from __future__ import annotations

from tidewire.testing.simulation.crashtest.database import copied
from tidewire.testing.simulation.crashtest.events import Incoming, events_in
from tidewire.testing.simulation.crashtest.recording import Entry, effect
from tidewire.testing.simulation.crashtest.search import Defect, Limits, Verdict, crash_test
from tidewire.testing.simulation.crashtest.snapshots import Difference
from tidewire.testing.simulation.crashtest.story import told
from tidewire.testing.simulation.crashtest.world import Probe, Setting

__all__ = [
    "Defect",
    "Difference",
    "Entry",
    "Incoming",
    "Limits",
    "Probe",
    "Setting",
    "Verdict",
    "copied",
    "crash_test",
    "effect",
    "events_in",
    "told",
]
