"""What every test run prints at its end: what was *not* proven, counted, so that a skip is never silent."""

from __future__ import annotations

from collections import Counter

import pytest

# The shipped suites are not test files: pytest shows their assertions' values only if it is told before anybody
# imports them, and the first to do so may be any test module.
pytest.register_assert_rewrite(
    "tidewire.testing.codecs",
    "tidewire.testing.stores",
    "tidewire.testing.transports",
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line per reason for a skip, and their number, before the closing line."""
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if not reasons:
        terminalreporter.write_line("proven: nothing was skipped")
        return
    terminalreporter.section(f"NOT PROVEN: {sum(reasons.values())} tests were skipped", sep="!", red=True, bold=True)
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count:5}  {reason}")


def _reason(report: pytest.TestReport) -> str:
    detail = report.longrepr
    return str(detail[2] if isinstance(detail, tuple) else detail).removeprefix("Skipped: ")
