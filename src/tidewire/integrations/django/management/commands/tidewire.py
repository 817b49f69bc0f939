"""``manage.py tidewire upgrade | run | relay``: tidewire with the settings of the project."""

from __future__ import annotations

import asyncio
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.module_loading import import_string

from tidewire.config import open_store, open_store_on, open_transport
from tidewire.errors import TidewireError
from tidewire.integrations.django.told import Told, connection_of, told
from tidewire.runtime.serve import Options, serve_until_signal
from tidewire.runtime.service import Service

__all__ = ["Command"]


class Command(BaseCommand):
    """Run tidewire in a Django project."""

    help = "Make the store's tables (upgrade), run a service (run module:service), or only its relay (relay)."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take what to do, and with which service."""
        parser.add_argument("act", choices=["upgrade", "run", "relay"])
        parser.add_argument("service", nargs="?", default="", help="for run: module:service")
        parser.add_argument("--provision", action="store_true", help="create missing topics and groups")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it, until it is done or a signal comes."""
        if (options["act"] == "run") != bool(options["service"]):
            raise CommandError("`run` takes module:service, and nothing else does")
        try:
            asyncio.run(self._act(told(), options["act"], options["service"], provision=options["provision"]))
        except TidewireError as error:
            raise CommandError(str(error)) from error

    async def _act(self, found: Told, act: str, name: str, *, provision: bool) -> None:
        if act == "upgrade":
            async with open_store(found.store, provision=True):
                self.stdout.write("the store's tables are up to date")
            return
        service = _service(name) if name else Service(found.source)
        async with (
            open_transport(found.broker, create=provision) as broker,
            open_store_on(connection_of(found), url=found.store) as store,
        ):
            await serve_until_signal(service, transport=broker, store=store, options=Options(provision=provision))


def _service(name: str) -> Service:
    """Return the service that *name* stands for: ``module:service``."""
    try:
        found = import_string(name.replace(":", "."))
    except ImportError as error:
        raise CommandError(f"{name}: {error}") from error
    if not isinstance(found, Service):
        raise CommandError(f"{name} is a {type(found).__name__}, not a Service")
    return found
