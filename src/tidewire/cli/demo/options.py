"""What ``tidewire demo`` takes; the shop itself is loaded once it is clear that there is something to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tidewire.cli.demo.plants import PLANTS
from tidewire.cli.exits import CommandParser

__all__ = ["main"]

DESCRIPTION = """\
Run a shop of five services as separate processes and account for every order.
"""
EPILOG = """\
examples:
  tidewire demo --chaos
  tidewire demo --orders mine.jsonl --json
  tidewire demo --chaos --plant no-inbox
  tidewire demo --chaos --store postgresql:// --broker kafka://

exit codes:
  0  the books balance
  1  they do not
  2  a person must change something: an option, the order file, a missing extra
"""


def main(arguments: Sequence[str]) -> int:
    """Run the demo: 0 if the books balance, 1 if not.

    Raises:
        ConfigurationError: the order file cannot be read, or an option cannot be.
    """
    parser = CommandParser("tidewire demo", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--broker", default="", metavar="URL", help="run on this broker (default: a file)")
    parser.add_argument("--store", default="", metavar="URL", help="the services' databases (default: a file each)")
    parser.add_argument("--orders", type=Path, metavar="FILE", help="orders, one JSON object a line (default: shipped)")
    parser.add_argument(
        "--chaos",
        action="store_true",
        help="kill -9 services at random, at least ten times, and the demo's own servers",
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="stop handing orders in after N seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--plant", choices=PLANTS, help="run with this defect: the books must not balance")
    parser.add_argument("--seed", type=int, help="seed of the kills")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="where POST /orders is taken (default: any)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the databases in DIR")
    options = parser.parse_all(arguments)
    if options.seconds is not None and not 0 < options.seconds < 86_400:
        parser.error("--seconds must be above zero")
    from tidewire.cli.demo.command import run

    return run(options)
