"""The benchmarks run, measure what they say, and write what they print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_rates_are_measured_beside_their_twins(tmp_path: Path) -> None:
    """Every figure has its unit, its target and a verdict; ratios have a native twin beside them."""
    output = tmp_path / "bench.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "rates",
        "share",
        "--quick",
        "--scale",
        "0.01",
        "--output",
        str(output),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert 0 == done.returncode, done.stderr
    figures = json.loads(output.read_text())
    keys = {"name", "ours", "native", "ratio", "cpu_us_per_event", "unit", "rounds", "target", "met"}
    assert len(figures) >= 10
    for figure in figures:
        assert keys <= figure.keys()
        assert figure["ours"] > 0
        assert (figure["ratio"] is None) == (figure["native"] is None)
        assert figure["name"] in done.stdout
