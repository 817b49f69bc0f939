"""Nothing gets out of a crash test: a handler that dies a hundred times must not charge a hundred cards."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["Outside", "attempts_to_leave", "shut_in"]

_SHUT = frozenset(
    {"socket.connect", "socket.sendto", "socket.sendmsg", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}
)
_tried: list[str] = []


class Outside(PermissionError):
    """Raised where a handler reaches for the network or starts a program in a crash test."""


def shut_in() -> None:
    """Refuse from now on, for the rest of this OS process, what would get out of it."""
    sys.addaudithook(_refuse)


def attempts_to_leave() -> list[str]:
    """Return what was refused in this process."""
    return list(_tried)


def _refuse(name: str, arguments: Sequence[object]) -> None:
    if name in _SHUT:
        what = f"{name} {arguments[-1 if name.startswith('socket') else 0]!r}"
        _tried.append(what)
        raise Outside(f"a crash test lets nothing out: {what}")
