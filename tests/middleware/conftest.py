"""Middleware is tested on the world of the runtime's tests: real services on real transports and stores."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_RUNTIME = Path(__file__).resolve().parent.parent / "runtime"
if str(_RUNTIME) not in sys.path:
    sys.path.insert(0, str(_RUNTIME))

_spec = importlib.util.spec_from_file_location("runtime_conftest", _RUNTIME / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_runtime_conftest = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_runtime_conftest)
opened = _runtime_conftest.opened
