"""Which file system a path lies on: SQLite's locks and shared memory need a local one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["file_system", "is_network"]

# Kernel names of network file systems, and of folders that a virtual machine shares with its host.
_NETWORK = frozenset(
    {"9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "glusterfs", "gpfs", "lustre", "ncpfs"}
    | {"nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "pvfs2", "smb", "smb2", "smb3", "smbfs", "vboxsf", "vmhgfs"}
    | {f"fuse.{name}" for name in ("ceph", "gcsfuse", "glusterfs", "grpcfuse", "rclone", "s3fs", "sshfs")}
    | {"fuse.vmhgfs-fuse", "webdav"}
)


def file_system(path: Path, mounts: Iterable[str] | None = None) -> str:
    """Return the type of the file system that *path* lies on, or nothing where the system does not say.

    *mounts* are lines as in ``/proc/mounts``, which is read by default.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text("utf-8", errors="surrogateescape").splitlines()
        except OSError:
            return ""
    place, best, found = os.path.realpath(path), "", ""
    for line in mounts:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        # A later mount on the same point hides the earlier one.
        if inside and len(point) >= len(best):
            best, found = point, fields[2]
    return found


def is_network(kind: str) -> bool:
    """Say whether a file system type is one of the network, or a folder shared into a virtual machine."""
    return kind in _NETWORK
