"""``tidewire dev``: finds the services of a project, runs them all, and starts again what a change concerns."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from tidewire.cli.dev.crew import Crew, Member
from tidewire.cli.dev.found import Found, Problem, Scan
from tidewire.cli.dev.log import DEV, Log, colour_wanted
from tidewire.cli.dev.watch import Watch
from tidewire.cli.exits import CommandParser
from tidewire.cli.processes import Patience
from tidewire.config import Settings, colour_refused, masked, open_transport, settings_from
from tidewire.errors import ConfigurationError
from tidewire.kit.groups import first_error
from tidewire.model import GroupSpec, TopicSpec

__all__ = ["main"]

DESCRIPTION = """\
Run all services of the project in the working directory, each in a process of its own with its own store, on one
embedded broker; create their topics; start again what a change of the code concerns; show one merged log.

Without TARGET: the setting `services`, or else every service that the packages and modules here make.
"""
EPILOG = """\
examples:
  tidewire dev
  tidewire dev shop.billing:billing shop.shipping:shipping
  tidewire dev --no-reload --json

Broker and stores lie under .tidewire/; the settings broker and store (TIDEWIRE_BROKER, TIDEWIRE_STORE) say otherwise,
and {service} in a store's URL stands for the name of the service.
Ctrl-C drains every service; a second one stops them at once.
"""
STORE = "sqlite:///.tidewire/{service}.db"
_SCAN_MAX = 60.0
# A process that was killed keeps its lanes for a lease; whoever edits code does not want to wait for half a minute.
_LEASE = 5.0


def main(arguments: Sequence[str]) -> int:
    """Run until a signal, and return the exit code.

    Raises:
        ConfigurationError: no service, a setting that cannot be, or, without reload, a module that cannot be imported.
        TransportUnavailable, TransportRefused: the broker cannot be used.
    """
    parser = CommandParser("tidewire dev", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="module:service, as `tidewire run` takes it")
    parser.add_argument("--no-reload", action="store_true", help="let changes of the code be")
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    options = parser.parse_all(arguments)
    settings = settings_from(assumed={"store": STORE, "lease": _LEASE, "provision": True})
    if settings.broker.startswith("memory:"):
        raise ConfigurationError(
            "a memory:// broker lives in one process, so the services would never meet",
            hint="unset TIDEWIRE_BROKER: the default is a file below .tidewire/",
        )
    log = Log(as_json=options.json, colour=colour_wanted(refused=colour_refused()))
    return asyncio.run(_Dev(options, settings, log).run())


class _Dev:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace, settings: Settings, log: Log) -> None:
        self._targets: Sequence[str] = options.targets or settings.services
        self._reload = not options.no_reload
        self._as_json = options.json
        self._settings = settings
        self._log = log
        self._crew = Crew(log, Patience(settings.seconds("grace")), reload=self._reload)
        self._told: tuple[Problem, ...] = ()
        log.on_gone = self._crew.stop

    async def run(self) -> int:
        """Start, watch, end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._crew.stop)
        watch = await asyncio.to_thread(Watch, Path.cwd())
        scan = await _scan(self._targets)
        self._check(scan)
        await self._provision(scan.services)
        self._welcome(scan)
        self._tell_problems(scan)
        try:
            async with asyncio.TaskGroup() as tasks:
                for found in scan.services:
                    self._begin(found, tasks)
                if self._reload:
                    watching = tasks.create_task(self._watch(watch, tasks), name="watch")
                    await self._crew.stopping.wait()
                    watching.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            self._crew.close()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        self._log.line(DEV, "stopped", text="every service has ended", code=self._crew.code)
        return self._crew.code

    def _begin(self, found: Found, tasks: asyncio.TaskGroup) -> None:
        store = self._settings.store.replace("{service}", found.name)
        member = Member(found, msgspec.structs.replace(self._settings, store=store, services=()))
        self._crew.members[found.name] = member
        tasks.create_task(self._crew.keep(member), name=found.name)

    async def _watch(self, watch: Watch, tasks: asyncio.TaskGroup) -> None:
        """Until cancelled: when files have changed, look at the project, and do what follows for its processes."""
        while True:
            changed = await watch.changed()
            for member in self._crew.members.values():
                # A process that is not there, or has not told yet what it has loaded, may be concerned.
                unknown = member.process is None or not member.files
                member.stale |= changed if unknown else member.files & changed
            scan = await _scan(self._targets)
            self._tell_problems(scan)
            if any(not problem.module for problem in scan.problems):
                continue  # nothing was learnt about any service
            self._dismiss(scan)
            await self._apply(scan, tasks)

    def _dismiss(self, scan: Scan) -> None:
        """Let services go that are no longer in the code; those whose module is broken stay as they are."""
        there = {one.name for one in scan.services}
        broken = {problem.module for problem in scan.problems}
        for name, member in tuple(self._crew.members.items()):
            if name not in there and member.found.module not in broken:
                self._log.line(name, "gone", text="is gone from the code; its process drains")
                self._crew.dismiss(name)

    async def _apply(self, scan: Scan, tasks: asyncio.TaskGroup) -> None:
        """Start again what is stale and can be imported, and start what is new."""
        members = self._crew.members
        fresh = [one for one in scan.services if one.name not in members]
        again = [one for one in scan.services if one.name in members and members[one.name].stale]
        await self._provision([*again, *fresh])
        for one in again:
            members[one.name].found = one
            files = sorted(Path(path).name for path in members[one.name].stale)
            text = f"{', '.join(files[:3])}{' …' if files[3:] else ''} changed: starts again"
            self._log.line(one.name, "restarting", text=text, files=files)
        self._crew.restart(one.name for one in again)
        self._log.expect(one.name for one in scan.services)
        for one in fresh:
            self._log.line(one.name, "found", text=f"is new in the code ({one.target})", target=one.target)
            self._begin(one, tasks)

    def _check(self, scan: Scan) -> None:
        """Refuse what no change of the code can mend, or what nobody waits to see mended."""
        if not scan.services and not scan.problems:
            raise ConfigurationError(
                f"there is no service in the packages and modules of {Path.cwd()}",
                hint="`tidewire new shop` makes a project; else start in the folder that holds your package, "
                "or name services: `tidewire dev shop.billing:billing`",
            )
        if scan.problems and not self._reload:
            raise ConfigurationError(scan.problems[0].message, hint=scan.problems[0].hint)
        if len(scan.services) > 1 and "{service}" not in self._settings.store:
            raise ConfigurationError(
                f"{len(scan.services)} services would share the store {masked(self._settings.store)}",
                hint="put {service} into the URL: TIDEWIRE_STORE='sqlite:///data/{service}.db'",
            )

    def _tell_problems(self, scan: Scan) -> None:
        if scan.problems != self._told:
            for problem in scan.problems:
                on = [name for name, one in self._crew.members.items() if one.found.module == problem.module]
                goes_on = f" ({', '.join(on)}: the code from before goes on)" if on else ""
                self._log.problem(DEV, problem.message + goes_on, hint=problem.hint, module=problem.module)
            if self._told and not scan.problems:
                self._log.line(DEV, "mended", text="everything can be imported again")
        self._told = scan.problems

    async def _provision(self, services: Sequence[Found]) -> None:
        """Create topics and groups before anybody publishes, so that no first event is missed."""
        topics = sorted({topic for one in services for topic in one.topics})
        if topics:
            async with open_transport(self._settings.broker) as transport:
                specs = [TopicSpec(topic, lanes=self._settings.lanes) for topic in topics]
                await transport.provision(specs, [GroupSpec(one.name, one.topics) for one in services if one.topics])

    def _welcome(self, scan: Scan) -> None:
        """Say what runs, where its data are, and what to try next."""
        self._log.expect(one.name for one in scan.services)
        rows = [(one.name, one.target, one.topics, self._settings.store) for one in scan.services]
        services = [
            {"name": name, "target": target, "topics": topics, "store": masked(store.replace("{service}", name))}
            for name, target, topics, store in rows
        ]
        commands = [*filter(None, [scan.example]), "tidewire tail", "tidewire groups", "tidewire dlq list"]
        broker = masked(self._settings.broker)
        if self._as_json:
            self._log.line(DEV, "started", broker=broker, services=services, next=commands, reload=self._reload)
            return
        lines = [f"broker   {broker}"]
        for one in services:
            hears = ", ".join(one["topics"]) or "nothing"
            lines += [f"service  {one['name']}  ({one['target']})", f"         hears {hears}; data in {one['store']}"]
        lines += ["try next, in another terminal:", *(f"  {command}" for command in commands)]
        lines.append("Ctrl-C ends it." + (" A change of the code starts what it concerns again." * self._reload))
        self._log.write("\n".join(lines))


async def _scan(targets: Sequence[str]) -> Scan:
    """Look at the project in a process of its own; what goes wrong there is a problem of the project."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tidewire.cli.dev.scan", *targets, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(_SCAN_MAX):
            answer, said = await process.communicate()
    except TimeoutError:
        return Scan(problems=(Problem("", f"importing the project took more than {_SCAN_MAX:g} s"),))
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
    if process.returncode != 0:
        words = said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        return Scan(problems=(Problem("", f"looking at the project ended with {process.returncode}: {words[0]}"),))
    return msgspec.json.decode(answer, type=Scan)
