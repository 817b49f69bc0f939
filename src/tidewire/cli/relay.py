"""``tidewire relay``: publishes the outbox of a service's store, and does nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tidewire.cli.exits import OK, CommandParser
from tidewire.cli.logs import set_up_logs
from tidewire.config import settings_from
from tidewire.errors import ConfigurationError

__all__ = ["main"]

DESCRIPTION = """\
Publish the outbox of a service's store until SIGTERM or Ctrl-C: for processes that write events and publish none
themselves, such as an application in another framework, or a service with --no-relay. What is on its way may land
within the grace period; a second signal stops at once.

Several may run. A store in PostgreSQL shares its outbox out among all that live, in one in SQLite one works and the
others stand by; who dies or stands still is replaced after its lease.
"""
EPILOG = """\
examples:
  tidewire relay --store postgresql://shop@db/shop --broker sqlite:///data/broker.db
  tidewire relay --store sqlite:///data/billing.db --broker sqlite:///data/broker.db --probe 0.0.0.0:8080

Every option is a setting too: TIDEWIRE_BROKER, TIDEWIRE_STORE, TIDEWIRE_GRACE … in the environment, or in
tidewire.toml. /readyz is 503 while the broker or the store is away.
"""


def main(arguments: Sequence[str]) -> int:
    """Relay until a signal, and return the exit code.

    Raises:
        ConfigurationError: no store, or a setting that cannot be.
        TransportUnavailable, TransportRefused, StoreUnavailable, StoreRefused: it cannot start.
    """
    parser = CommandParser("tidewire relay", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--store", metavar="URL", help="the service's own database (the setting store)")
    parser.add_argument("--broker", metavar="URL", help="the broker (the setting broker)")
    parser.add_argument("--grace", metavar="SECONDS", type=float, help="how long a stop lets it finish (default: 10)")
    parser.add_argument(
        "--probe",
        metavar="HOST:PORT",
        help="answer GET /livez and /readyz there, for an orchestrator (default: nowhere)",
    )
    parser.add_argument(
        "--provision", action="store_true", help="create missing topics, and a broker file that is not there"
    )
    parser.add_argument(
        "--json", "--json-logs", dest="json_logs", action="store_true", help="one JSON object per log line, on stderr"
    )
    options = parser.parse_all(arguments)
    settings = settings_from(
        broker=options.broker,
        store=options.store,
        grace=options.grace,
        provision=options.provision or None,
        probe=options.probe,
        log="json" if options.json_logs else None,
        relay=True,
    )
    for what, url in (("store", settings.store), ("broker", settings.broker)):
        if not url or url.startswith("memory:"):
            raise ConfigurationError(
                f"there is no {what} that another process could share", hint=f"--{what} URL, or the setting {what}"
            )
    set_up_logs(as_json=settings.log == "json")
    # The loop, the runtime and the adapters are loaded once it is clear that there is something to run.
    from tidewire.cli.serving import serve
    from tidewire.runtime.service import Service

    asyncio.run(serve(Service("relay"), settings, create=settings.provision))
    return OK
