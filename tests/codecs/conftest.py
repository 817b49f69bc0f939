"""The shipped suites are not test files: pytest shows their assertions' values only if it is told to."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tidewire.testing.codecs")
