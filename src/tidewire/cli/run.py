"""``tidewire run module:service``: one service in production, in this process or in several."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import threading
from collections.abc import Sequence

from tidewire.cli.exits import OK, CommandParser, whole_number
from tidewire.cli.logs import set_up_logs
from tidewire.cli.processes import Patience, follow_parent
from tidewire.cli.target import find_service
from tidewire.cli.workers import supervise
from tidewire.config import Settings, settings_from
from tidewire.errors import ConfigurationError

__all__ = ["main"]

DESCRIPTION = """\
Run one service until SIGTERM or Ctrl-C, then drain: take in nothing more, let handlers end within the grace period,
settle, publish what is in the outbox. A second signal stops at once. Neither costs an attempt.

The broker, its topics and groups are verified, never changed: what is missing is created only with --provision.
"""
EPILOG = """\
examples:
  tidewire run shop.billing:billing
  tidewire run shop.billing:billing --broker sqlite:///data/broker.db --store sqlite:///data/billing.db --workers 4
  tidewire run shop.billing:billing --probe 0.0.0.0:8080

Every option is a setting too: TIDEWIRE_BROKER, TIDEWIRE_STORE, TIDEWIRE_GRACE … in the environment, or broker,
store, grace … in tidewire.toml or under [tool.tidewire] in pyproject.toml. The command line wins.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the service that *arguments* name, and return the exit code.

    Raises:
        ConfigurationError: no such service, or a setting that cannot be.
        TransportUnavailable, TransportRefused, StoreUnavailable, StoreRefused: it cannot start.
    """
    options = _parser().parse_all(arguments)
    settings = settings_from(
        broker=options.broker,
        store=options.store,
        grace=options.grace,
        provision=options.provision or None,
        probe=options.probe,
        relay=False if options.no_relay else None,
        log="json" if options.json_logs else None,
    )
    set_up_logs(as_json=settings.log == "json")
    if options.supervised:
        follow_parent(Patience(settings.seconds("grace")).longest)
    service = find_service(options.target)
    if options.workers > 1:
        if settings.probe:
            raise ConfigurationError(
                "one probe cannot speak for several workers", hint="run one worker, and several containers or units"
            )
        return _with_workers(arguments, options.workers, settings)
    # The loop, the runtime and the adapters are loaded once it is clear that there is something to run.
    from tidewire.cli.serving import serve

    asyncio.run(serve(service, settings, create=settings.provision))
    _leave_threads_behind()
    return OK


def _leave_threads_behind() -> None:
    """End now if a ``def`` handler goes on after its grace: it cannot be stopped, and Python would wait for it.

    Everything is closed by now, and what the handler had is given back: its statements are refused.
    """
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("tidewire-") and not thread.daemon]
    for thread in ours:
        thread.join(0.5)
    if any(thread.is_alive() for thread in ours):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(OK)


def _with_workers(arguments: Sequence[str], count: int, settings: Settings) -> int:
    if settings.broker.startswith("memory:"):
        raise ConfigurationError(
            "a memory:// broker lives in one process, so several workers would never meet",
            hint="use --broker sqlite:///.tidewire/broker.db, or one worker",
        )
    command = [sys.executable, "-m", "tidewire.cli", "run", *arguments, "--workers=1", "--supervised"]
    return asyncio.run(supervise(command, count=count, patience=Patience(settings.seconds("grace"))))


def _parser() -> CommandParser:
    parser = CommandParser("tidewire run", DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "target", metavar="module:service", help="where the service is, for example shop.billing:billing"
    )
    parser.add_argument(
        "--broker",
        metavar="URL",
        help="sqlite:///path (the default: sqlite:///.tidewire/broker.db), postgresql://…, kafka://…, amqp://… or memory://",
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help="the service's own database: sqlite:///path or postgresql://…; without it there is none",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=whole_number(1, 256),
        default=1,
        help="how many processes share the work (default: 1)",
    )
    parser.add_argument(
        "--grace", metavar="SECONDS", type=float, help="how long a stop lets handlers end (default: 10)"
    )
    parser.add_argument(
        "--probe",
        metavar="HOST:PORT",
        help="answer GET /livez and /readyz there, for an orchestrator (default: nowhere)",
    )
    parser.add_argument(
        "--provision", action="store_true", help="create missing topics and groups, and a broker that is not there"
    )
    parser.add_argument(
        "--no-relay", action="store_true", help="leave the outbox to `tidewire relay`, or to other processes"
    )
    parser.add_argument(
        "--json", "--json-logs", dest="json_logs", action="store_true", help="one JSON object per log line, on stderr"
    )
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    return parser
