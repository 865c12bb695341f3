"""dpkg's locks, held while apt must not work on an environment.

The rule: the lock belongs to an open file (OFD) and so ends with us, however we end; it conflicts with the locks of
dpkg and apt. It never waits.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from snap_upgrade.core.errors import Locked
from snap_upgrade.packages.apt_archives import within
from snap_upgrade.system import kernel

_FLOCK = "@hhqqi4x"


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Hold the package database of the environment at *root*; raise Locked, naming the holder.

    Of the running root both locks are held: aptitude takes only the older one. Of another root the older one is only
    tried, for that is where dpkg itself works while we hold the other.
    """
    folder = within(root, "var/lib/dpkg")
    with ExitStack() as stack:
        for name in ("lock-frontend", "lock"):
            fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            stack.callback(os.close, fd)
            if not kernel.ofd_lock(fd):
                raise Locked(f"the packages of {root} are being changed by {_holder(fd)}; nothing was changed",
                             "wait until it is done")  # fmt: skip
            if name == "lock" and root != Path("/"):
                _unlock(fd)
        yield


def _unlock(fd: int) -> None:
    """Give the lock on *fd* back."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def _holder(fd: int) -> str:
    """Return who holds the lock on *fd*, for a message."""
    answer = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    pid = int(struct.unpack(_FLOCK, answer)[4])
    if pid <= 0:  # another open file's lock names nobody: it is one of ours
        return "another snap-upgrade"
    try:
        comm = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return f"process {pid}"
    return f"{comm} (process {pid})"
