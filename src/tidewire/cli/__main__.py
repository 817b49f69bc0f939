"""``python -m tidewire.cli``: the same as ``tidewire``, for a Python whose scripts are not on PATH."""

from __future__ import annotations

import sys

from tidewire.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
