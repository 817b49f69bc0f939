"""One service of ``tidewire dev`` as a process of its own: ``python -m tidewire.cli.dev.worker``, its job on stdin.

It tells its parent, on a pipe and a line of JSON at a time, which files it has loaded and what becomes of events; log
records go to stderr as JSON lines, and what the code prints goes where it goes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tidewire.cli.dev.found import Job
from tidewire.cli.exits import OK, exit_code
from tidewire.cli.logs import set_up_logs
from tidewire.cli.processes import Patience, follow_parent
from tidewire.cli.serving import serve
from tidewire.cli.target import find_service
from tidewire.config import Settings
from tidewire.errors import HandlerVerdict, TidewireError
from tidewire.kit.groups import first_error
from tidewire.model import Fact
from tidewire.runtime.context import Context
from tidewire.runtime.parts import Parts
from tidewire.runtime.service import Handle, Service

__all__ = ["main"]

_logger = logging.getLogger("tidewire.dev")

# What a log record does not tell as well.
_SHOWN = frozenset({"published", "processed", "known", "discarded", "lost"})
_WAITING_MAX = 1_000
_TELL_EVERY = 0.1


class Teller:
    """Tells the parent. An observer: it keeps at most a thousand facts, and counts what it had to leave out."""

    def __init__(self, report: int) -> None:
        self._report = report
        self._waiting: list[dict[str, object]] = []
        self._left_out = 0
        self._modules = 0

    def record(self, facts: Sequence[Fact]) -> None:
        """Take in facts; what a log record tells as well is left to that."""
        for fact in facts:
            if fact.kind in _SHOWN:
                self.take({"what": "fact", **msgspec.structs.asdict(fact)})

    def take(self, told: dict[str, object]) -> None:
        """Take in one thing to tell."""
        if len(self._waiting) < _WAITING_MAX:
            self._waiting.append(told)
        else:
            self._left_out += 1

    def tell(self) -> None:
        """Write what is waiting, as lines; waits for a parent that is slow to read."""
        self._write(self._lines())

    async def telling(self) -> None:
        """Until cancelled: tell, ten times a second."""
        while True:
            await asyncio.to_thread(self._write, self._lines())
            await asyncio.sleep(_TELL_EVERY)

    def _lines(self) -> bytes:
        told, self._waiting = self._waiting, []
        if self._left_out:
            told.append({"what": "left_out", "count": self._left_out})
            self._left_out = 0
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            told.append({"what": "files", "files": loaded_files(Path.cwd())})
        return b"".join(msgspec.json.encode(one) + b"\n" for one in told)

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._report, data) :]
        except BrokenPipeError:
            return  # the parent is gone, and we are about to drain


def loaded_files(root: Path) -> list[str]:
    """Return the files below *root* that this process has imported."""
    inside = os.path.realpath(root) + os.sep
    files = [getattr(module, "__file__", None) for module in tuple(sys.modules.values())]
    real = {os.path.realpath(file) for file in files if isinstance(file, str)}
    return sorted(file for file in real if file.startswith(inside))


def shown_errors(handle: Handle) -> Handle:
    """Log where a handler raised, and let it rise: a middleware."""

    async def call(event: Any, context: Context[Any]) -> Any:
        try:
            return await handle(event, context)
        except Exception as error:
            told = {"type": context.envelope.type, "event_id": context.envelope.id, "attempt": context.attempt}
            verdict = isinstance(error, HandlerVerdict)  # the handler's own word needs no traceback
            # The first frame is this one.
            frames = error.__traceback__.tb_next if error.__traceback__ else None
            _logger.error(
                "tidewire.dev.raised",
                extra={**told, "error_type": type(error).__name__, "error": str(error)},
                exc_info=None if verdict else (type(error), error, frames),
            )
            raise

    return call


def main() -> int:
    """Run the service until SIGTERM or the parent's end, and return the exit code."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    os.set_inheritable(job.report, False)
    settings = msgspec.convert(job.settings, Settings)
    follow_parent(Patience(settings.seconds("grace")).longest)
    set_up_logs(as_json=True)
    teller = Teller(job.report)
    try:
        service = find_service(job.target)
        service.middleware = (shown_errors, *service.middleware)
        asyncio.run(_serve(service, settings, teller))
    except TidewireError as error:
        teller.take({"what": "failed", "message": error.message, "hint": error.hint})
        return exit_code(error)
    finally:
        teller.tell()
    return OK


async def _serve(service: Service, settings: Settings, teller: Teller) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(teller.telling())
            await serve(service, settings, parts=Parts(observer=teller))
            telling.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from None


if __name__ == "__main__":
    sys.exit(main())
