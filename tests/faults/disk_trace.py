"""What a process asks of its disk, recorded by strace: its writes, syncs and names, and between them what it said.

The process is not modified. What it promises it prints (`ACK …` once something is durable, `ALWAYS …` for what must
hold whenever), and the print stands in the same trace as the system calls, so that the trace is the exact oracle.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

CALLS = (
    "pwrite64,pwritev,write,fsync,fdatasync,sync_file_range,ftruncate,truncate,fallocate,unlink,unlinkat,"
    "rename,renameat,renameat2,openat,mkdir,mkdirat"
)
# Locks, shared memory and the reserve carry no state over a power loss.
IGNORED = re.compile(r"-(lock|gate|shm|reserve)$")
_LINE = re.compile(r"^(\d+) +(.*)$")
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\)\s+= (\d+)\b", re.DOTALL)
_HEX = re.compile(r"\\x([0-9a-f]{2})")
_QUOTED = re.compile(r'"([^"]*)"')
_DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")


class Op(NamedTuple):
    """One step. *kind*: write, truncate, extend, create, mkdir, unlink, rename, syncing (asked for), sync (done), said.

    *other* is the new name of a rename; *mark* ties a sync to its asking; *text* is what was said.
    """

    kind: str
    path: str = ""
    at: int = 0
    data: bytes = b""
    other: str = ""
    mark: str = ""
    text: str = ""


def missing() -> str:
    """Say why nothing can be recorded here, or nothing."""
    if shutil.which("strace") is None:
        return "strace is not installed; `make test` installs it as root, else: apt-get install strace"
    probe = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else f"strace may not trace here: {probe.stderr.strip()}"


def record(command: Sequence[str], root: Path, log: Path, *, seconds: float = 120.0) -> list[Op]:
    """Run *command* and return what it did to files below *root*, and what it said.

    Raises:
        RuntimeError: it failed; with its last words.
    """
    strace = ["strace", "-f", "-xx", "-s", "4000000", "-y", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(log)]
    done = subprocess.run([*strace, *command], capture_output=True, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}")
    return list(parse(log, str(root)))


def parse(log: Path, root: str) -> Iterator[Op]:
    """Read a trace: calls that were interrupted by another thread's are put together again."""
    begun: dict[str, str] = {}
    with open(log, encoding="ascii", errors="replace") as lines:
        for number, line in enumerate(lines):
            found = _LINE.match(line)
            if not found:
                continue
            thread, rest = found.groups()
            if rest.endswith("<unfinished ...>"):
                begun[thread] = rest.removesuffix("<unfinished ...>")
                yield from _entered(begun[thread], root, thread)
                continue
            resumed = _RESUMED.match(rest)
            whole = resumed is None
            if resumed is not None:
                rest = begun.pop(thread, "") + resumed.group(2)
            yield from _done(rest, root, mark=f"{thread}-{number}" if whole else thread, whole=whole)


def _entered(text: str, root: str, thread: str) -> Iterator[Op]:
    """What counts from the moment a call is made: a word said, and how far a sync reaches."""
    name, _, arguments = text.partition("(")
    if name == "write" and arguments.startswith("1<"):
        yield from _said(arguments)
    elif name in ("fsync", "fdatasync") and (path := _path(arguments)).startswith(root):
        yield Op("syncing", path, mark=thread)


def _done(text: str, root: str, *, mark: str, whole: bool) -> Iterator[Op]:
    found = _CALL.match(text)
    if found is None:  # it failed, or is not a call
        return
    name, arguments, result = found.groups()
    if name == "write" and arguments.startswith("1<"):
        if whole:
            yield from _said(arguments)
        return
    for op in _effect(name, arguments, int(result)):
        if not op.path.startswith(root) or IGNORED.search(op.path):
            continue
        if op.kind == "sync":
            if whole:
                yield Op("syncing", op.path, mark=mark)
            yield Op("sync", op.path, mark=mark)
        else:
            yield op


def _effect(name: str, arguments: str, result: int) -> Iterator[Op]:
    match name:
        case "pwrite64":
            data = _bytes(_QUOTED.findall(arguments)[0])[:result]
            yield Op("write", _path(arguments), at=int(arguments.rsplit(", ", 1)[1]), data=data)
        case "fsync" | "fdatasync":
            yield Op("sync", _path(arguments))
        case "ftruncate":
            yield Op("truncate", _path(arguments), at=int(arguments.rsplit(", ", 1)[1]))
        case "truncate":
            yield Op("truncate", _names(arguments)[0], at=int(arguments.rsplit(", ", 1)[1]))
        case "openat":
            path = _names(arguments)[0]
            if "O_CREAT" in arguments:
                yield Op("create", path)
            if "O_TRUNC" in arguments:
                yield Op("truncate", path)
        case "mkdir" | "mkdirat":
            yield Op("mkdir", _names(arguments)[0])
        case "unlink" | "unlinkat":
            yield Op("unlink", _names(arguments)[0])
        case "rename" | "renameat" | "renameat2":
            old, new = _names(arguments)[:2]
            yield Op("rename", old, other=new)
        case _:
            path = _path(arguments)
            if name in ("write", "pwritev", "fallocate", "sync_file_range") and not IGNORED.search(path):
                yield Op(f"unknown call {name}", path)


def _said(arguments: str) -> Iterator[Op]:
    text = _bytes(_QUOTED.findall(arguments)[0]).decode(errors="replace")
    for line in text.splitlines():
        yield Op("said", text=line)


def _path(arguments: str) -> str:
    found = _DESCRIPTOR.match(arguments)
    return "" if found is None else _HEX.sub(lambda one: chr(int(one.group(1), 16)), found.group(1))


def _names(arguments: str) -> list[str]:
    return [_bytes(text).decode() for text in _QUOTED.findall(arguments)]


def _bytes(text: str) -> bytes:
    if text.count("\\x") * 4 == len(text):
        return bytes.fromhex(text.replace("\\x", ""))
    return _HEX.sub(lambda one: chr(int(one.group(1), 16)), text).encode("latin-1")
