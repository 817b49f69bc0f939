"""How this environment is: versions, extras, settings, clock, limits, broker and store. Nothing is changed."""

from __future__ import annotations

import asyncio
import platform
import re
import resource
import sqlite3
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from zoneinfo import ZoneInfo

from tidewire.clock import moment
from tidewire.config import Settings, examine_broker, examine_store, look_at_broker, look_at_store, masked
from tidewire.errors import StoreError, TransportError
from tidewire.kit.sqlite_errors import old_version
from tidewire.protocols import Clock
from tidewire.rules.findings import Section

__all__ = ["examine_machine", "examine_resources", "is_well"]

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_EXTRA = re.compile(r"""^([A-Za-z0-9._-]+).*;.*extra\s*==\s*['"]([\w-]+)['"]""")
_NOT_FOR_USERS = {"dev", "test", "docs"}
_FILES_LEAST = 256
_DRIFT_MS = 20.0
_WATCHED_SECONDS = 0.1
_FUTURE_US = 2_000_000


async def examine_machine(clock: Clock) -> list[Section]:
    """Look at versions, extras, the clock and the limits of this process."""
    return [_versions(), _extras(), await _clock(clock), _limits()]


async def examine_resources(settings: Settings, clock: Clock, *, full: bool) -> list[Section]:
    """Look at the broker and the store that *settings* name; *full* checks large files for damage, too.

    Raises:
        ConfigurationError: a URL that cannot be.
    """
    sections = [await _broker(settings, clock, full=full)]
    if settings.store:
        sections.append(await _store(settings, clock, full=full))
    return sections


def _versions() -> Section:
    section = Section(name="versions")
    section.fact("tidewire", metadata.version("tidewire"))
    section.fact("Python", f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})")
    section.fact("msgspec", metadata.version("msgspec"))
    section.fact("SQLite", sqlite3.sqlite_version)
    section.fact("system", platform.platform())
    if said := old_version():
        section.warning("sqlite-old", said, fix="a Python that is linked to SQLite 3.51.3 or newer")
    if sqlite3.threadsafety < 1:
        what = "this SQLite was built without threads"
        section.error("sqlite-single-thread", what, fix="a Python whose SQLite is built with SQLITE_THREADSAFE=1")
    return section


def _extras() -> Section:
    """Say of each optional dependency whether it is there."""
    section = Section(name="extras")
    packages: dict[str, list[str]] = {}
    for line in metadata.requires("tidewire") or ():
        found = _EXTRA.match(line)
        if found and found[2] not in _NOT_FOR_USERS:
            packages.setdefault(found[2], []).append(found[1])
    for extra, names in sorted(packages.items()):
        versions = [_version(name) for name in names]
        missing = [name for name, version in zip(names, versions, strict=True) if not version]
        there = ", ".join(f"{name} {version}" for name, version in zip(names, versions, strict=True) if version)
        section.fact(extra, there if not missing else f"not installed: pip install 'tidewire[{extra}]'")
    return section


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


async def _clock(clock: Clock) -> Section:
    """Watch the wall clock beside the boot clock for a moment, and look for what times depend on."""
    section = Section(name="clock")
    section.fact("now", f"{clock.now().isoformat(timespec='seconds')}, here {clock.now().astimezone().tzname()}")
    wall, ticks = clock.now_us(), clock.ticks()
    await asyncio.sleep(_WATCHED_SECONDS)
    drift = abs((clock.now_us() - wall) / 1e3 - (clock.ticks() - ticks) / 1e6)
    section.fact("drift", f"{drift:.1f} ms between wall and boot clock in {_WATCHED_SECONDS * 1e3:.0f} ms")
    if drift > _DRIFT_MS:
        section.warning(
            "clock-jumps", "the wall clock is being moved", fix="wait until NTP has set it; leases do not mind"
        )
    _clock_files(section, clock.now_us())
    try:
        ZoneInfo("Europe/Berlin")
        section.fact("time zones", "known")
    except (KeyError, OSError):
        section.fact("time zones", "unknown")
        section.warning(
            "no-time-zones", "there is no data of time zones: Cron(zone=…) refuses", fix="pip install tzdata"
        )
    return section


def _clock_files(section: Section, now_us: int) -> None:
    if now_us < Path(__file__).stat().st_mtime_ns // 1_000:
        what = "the wall clock is before the time when tidewire was installed"
        section.error("clock-behind", what, fix="set the clock (NTP): due times and ages depend on it")
    try:
        section.fact("boot", _BOOT.read_text().strip())
    except OSError:
        section.fact("boot", "unknown")
        what = f"{_BOOT} cannot be read: after a restart of the machine, leases of the old start may count"
        section.warning("no-boot-id", what, fix="mount /proc in the container")


def _limits() -> Section:
    section = Section(name="limits")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    section.fact("open files", "no limit" if files == resource.RLIM_INFINITY else files)
    if files != resource.RLIM_INFINITY and files < _FILES_LEAST:
        what = f"a process may open {files} files; a service with a store and some connections needs more"
        section.warning("few-open-files", what, fix=f"ulimit -n {_FILES_LEAST * 4}, or LimitNOFILE= in its unit")
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    section.fact("file size", "no limit" if size == resource.RLIM_INFINITY else f"{size} bytes")
    if size != resource.RLIM_INFINITY:
        what = f"a file may have {size} bytes: a broker or store that reaches that is as good as full"
        section.warning("file-size-limited", what, fix="ulimit -f unlimited, or LimitFSIZE=infinity in its unit")
    return section


async def _broker(settings: Settings, clock: Clock, *, full: bool) -> Section:
    section = Section(name="broker")
    section.fact("url", masked(settings.broker))
    if settings.broker.startswith("memory:"):
        section.fact("state", "lives inside the process that runs it, and ends with it")
        return section
    if not await asyncio.to_thread(examine_broker, settings.broker, section, now_us=clock.now_us(), full=full):
        return section
    try:
        topics = await look_at_broker(settings.broker).topics()
    except TransportError as error:
        section.error("broker-unavailable", error.message, fix=error.hint or "start it, or name another with --broker")
        return section
    section.fact("reachable", f"yes, {len(topics)} topics, {sum(topic.messages or 0 for topic in topics):,} messages")
    newest = max((topic.newest_at or 0 for topic in topics), default=0)
    if newest > clock.now_us() + _FUTURE_US:
        what = f"its newest message was stored at {moment(newest).isoformat(timespec='seconds')}, in the future"
        section.error("clock-behind", what, fix="set the clock (NTP) of this machine, or of the one that stored it")
    return section


async def _store(settings: Settings, clock: Clock, *, full: bool) -> Section:
    section = Section(name="store")
    section.fact("url", masked(settings.store))
    if settings.store.startswith("memory:"):
        section.fact("state", "lives inside the process that runs it, and ends with it")
        return section
    if not await asyncio.to_thread(examine_store, settings.store, section, now_us=clock.now_us(), full=full):
        return section
    try:
        outbox = await look_at_store(settings.store).outbox()
    except StoreError as error:
        section.error("store-unavailable", error.message, fix=error.hint or "start it, or name another with --store")
        return section
    section.fact("outbox", f"{outbox.ready:,} ready, {outbox.delayed:,} delayed, {outbox.stuck:,} stuck")
    if outbox.stuck and outbox.stuck_since is not None:
        since = moment(outbox.stuck_since).isoformat(timespec="seconds")
        what = f"{outbox.stuck:,} events are stuck, the first since {since}: the broker refused them for good"
        section.error("outbox-stuck", what, fix="`tidewire outbox stuck` says why; then `tidewire outbox requeue`")
    if outbox.ready and outbox.relayed is False:
        what = f"{outbox.ready:,} events wait to be published, and no process relays them"
        section.warning("outbox-not-relayed", what, fix="start the service, or `tidewire outbox flush`")
    return section


def is_well(sections: Sequence[Section], *, strict: bool = False) -> bool:
    """Whether there is no error in *sections*; with *strict*, no warning either."""
    levels = {finding.level for section in sections for finding in section.findings}
    return "error" not in levels and not (strict and levels)
