"""The codec conformance suite: what turns events into bytes and back must do.

Call ``pytest.register_assert_rewrite("tidewire.testing.codecs")`` in ``conftest.py`` to see the values of an
assertion that fails. The cases that try *any* event and *any* bytes need the package hypothesis, and say so where
it is missing.
"""

from __future__ import annotations

from tidewire.testing.codecs.bench import Site
from tidewire.testing.codecs.suite import CodecConformance

__all__ = ["CodecConformance", "Site"]
