"""Rounds of ``make faults CAMPAIGN=outbox``: eight writers that commit out of order, and a relay that claims."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from fault_rounds import Round
from postgres_rounds import campaign_server

__all__ = ["one_round"]


def one_round(seed: int) -> Round:
    """Write 100,000 rows and read them by claims, on a server of its own."""
    sys.path.append(str(Path(__file__).parents[1] / "stores"))
    from outbox_readers import committed_by, read_by_claims, wrong_about

    with campaign_server() as url:
        sent, seen = read_by_claims(url, writers=8, rows=100_000, batch=60, pause=0.005, seed=seed)
    lost, crossed = wrong_about(sent, seen)
    wrong = [f"round {seed}: {lost} rows missed, {crossed} keys out of order"] if lost or crossed else []
    return Round(Counter({"rows committed out of order": committed_by(sent)}), wrong)
