"""Files that survive a power cut, and locks that die with their holder.

The rule: a reader sees the old content or the new, never a mixture; what this returns from is on disk.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snap_upgrade.core.errors import Locked
from snap_upgrade.system import failpoint, kernel

TEMPORARY = ".new"
RECOVERY = "snap-upgrade recover"
HOOK = "the hook of "  # it takes a snapshot, and then apt works without the lock
UNNAMED = "another snap-upgrade"  # it has the lock since an instant, and has not said who it is
_POLL_S = 0.05
_FLOCK = "@hhqqi4x"  # struct flock: type, whence, start, length, pid


class Failed(OSError):
    """An OSError that says what could not be done: its text alone must be enough for a person."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def told(what: str, path: Path) -> Iterator[None]:
    """Let an OSError say that we could not *what* the file *path*. One of a file that is not there stays as it is."""
    try:
        yield
    except (Failed, FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        # Our state is reached through a descriptor, whose path says nothing to anybody.
        name = str(path).rpartition("/.snap-upgrade/")[2]
        raise Failed(error.errno, f"cannot {what} {name}: {error.strerror or error}") from error


def sync_dir(path: Path) -> None:
    """Make the entries of the folder *path* durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of *data*, however short the single writes come out."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_durable(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the content of *path* by *data*: temporary file, fsync, rename, fsync of the folder.

    On an error the temporary file is gone, and the old content stays unless it was the last call that failed: then the
    new content is there and may not survive a power cut.
    """
    with told("write", path):
        _write_durable(path, data, mode)


def _write_durable(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    failpoint.reach("write.before")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        failpoint.reach("write.written")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    failpoint.reach("write.renamed")
    sync_dir(path.parent)
    failpoint.reach("write.after")


def remove_durable(path: Path) -> None:
    """Remove *path*, which may be gone already, durably."""
    failpoint.reach("remove.before")
    with told("remove", path):
        path.unlink(missing_ok=True)
        sync_dir(path.parent)
    failpoint.reach("remove.after")


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed writers left in *folder*."""
    names = os.listdir(folder) if folder.is_dir() else []
    for name in names:
        writer = name.removesuffix(TEMPORARY).rpartition(".")[2]
        is_ours = name.startswith(".") and name.endswith(TEMPORARY) and writer.isdecimal()
        if is_ours and (int(writer) == os.getpid() or not os.path.exists(f"/proc/{writer}")):
            remove_durable(folder / name)


def lock(path: Path, holder: str, patience_s: float = 0.0) -> int:
    """Lock the file *path* exclusively, write *holder* into it for those who find it taken, return the descriptor.

    Raises Locked if another process has it; a recovery is waited for up to *patience_s*: one is begun after every
    failed operation, and the user who types the command that was printed must not be turned away by it. So is a hook,
    which has it for an instant, and one who has not said who it is, as a hook that closes an operation.
    The lock ends with `unlock`, when the descriptor is closed, also by our death.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + patience_s
    try:
        while (other := _try_lock(descriptor)) is not None:
            if not other.startswith((RECOVERY, HOOK, UNNAMED)) or time.monotonic() > deadline:
                raise Locked(f"{other} is at work", "wait until it is done, or look at 'snap-upgrade status'")
            time.sleep(_POLL_S)
        failpoint.reach("lock.taken")
        kernel.write_holder(descriptor, holder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _try_lock(descriptor: int) -> str | None:
    """Return None with the lock held, or who has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return kernel.read_holder(descriptor) or UNNAMED
    return None


def unlock(descriptor: int) -> None:
    """Give a lock up, the text first: whoever has it next must not be taken for us before it says who it is."""
    try:
        with suppress(OSError):  # a file system that takes no more writes: the work is done, and its end was told
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def lock_pid(path: Path) -> int:
    """Return which process holds a lock of record (POSIX or OFD) on the file *path*: 0 for none, -1 for an unnamed one.

    The lock is not taken.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    if kind == fcntl.F_UNLCK:
        return 0
    return int(pid) or -1


def lock_holder(path: Path) -> str:
    """Return who holds a lock of record on the file *path*, empty if nobody does; see `lock_pid`."""
    pid = lock_pid(path)
    if pid == 0:
        return ""
    if pid < 0:
        return "another snap-upgrade"  # the lock of an open file names no process; those are ours
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text(encoding='utf-8', errors='replace').strip()} (process {pid})"
    except (FileNotFoundError, ProcessLookupError):
        return f"process {pid}"


@contextmanager
def locked(path: Path, holder: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file *path*; see `lock`."""
    descriptor = lock(path, holder, patience_s)
    try:
        yield
    finally:
        unlock(descriptor)
