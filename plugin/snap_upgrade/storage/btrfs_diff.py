"""The files that differ between two btrfs volumes, by the kernel's own comparison (send without data).

The rule: what is yielded differs in type, mode, owner, attributes or content; the cost follows the change, because
the kernel skips every block that both trees share.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from snap_upgrade.core.errors import StorageError
from snap_upgrade.core.model import Change, FileChange
from snap_upgrade.storage import btrfs_stream
from snap_upgrade.system import kernel

_BLOCK = 1 << 20


def changed_files(old: tuple[int, int], new_fd: int) -> list[FileChange]:
    """Return what differs between two read-only volumes: *old* as (descriptor, number), and *new_fd*."""
    old_fd, old_id = old
    # A file in memory and not a pipe: send blocks in the kernel, and a reader beside it would need a thread.
    stream_fd = os.memfd_create("send", os.MFD_CLOEXEC)
    try:
        kernel.send_names(new_fd, old_id, stream_fd)
        with open(stream_fd, "rb", closefd=False) as file:
            file.seek(0)
            data = file.read()
    finally:
        os.close(stream_fd)
    try:
        changes = btrfs_stream.changes(btrfs_stream.commands(data), lambda path: _below(old_fd, path))
    except btrfs_stream.BadStream as error:
        raise StorageError(f"cannot compare the volumes: {error}") from error
    return [c for c in changes if c.change is not Change.MODIFIED or _differ(old_fd, new_fd, c.path)]


def _at(fd: int, path: bytes | str) -> str:
    return f"/proc/self/fd/{fd}/{os.fsdecode(path).lstrip('/')}"


def _below(fd: int, path: bytes) -> Iterator[bytes]:
    """Yield every entry below the directory *path*, relative to it; nothing for what is no directory."""
    base = _at(fd, path)
    if not stat.S_ISDIR(os.lstat(base).st_mode):
        return
    device = os.lstat(base).st_dev
    stack = [b""]
    while stack:
        prefix = stack.pop()
        with os.scandir(os.path.join(os.fsencode(base), prefix)) as entries:
            for entry in entries:
                below = prefix + b"/" + entry.name if prefix else entry.name
                yield below
                if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_dev == device:
                    stack.append(below)


def _differ(old_fd: int, new_fd: int, path: str) -> bool:
    """Return whether the two files at *path* differ in more than times and place on the disk."""
    first, second = _at(old_fd, path), _at(new_fd, path)
    a, b = os.lstat(first), os.lstat(second)
    if (a.st_mode, a.st_uid, a.st_gid, a.st_rdev) != (b.st_mode, b.st_uid, b.st_gid, b.st_rdev):
        return True
    if _attributes(first) != _attributes(second):
        return True
    if stat.S_ISLNK(a.st_mode):
        return os.readlink(first) != os.readlink(second)
    if not stat.S_ISREG(a.st_mode):
        return False
    return a.st_size != b.st_size or not _same_content(first, second)


def _attributes(path: str) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def _same_content(first: str, second: str) -> bool:
    with open(first, "rb") as a, open(second, "rb") as b:
        while True:
            block = a.read(_BLOCK)
            if block != b.read(_BLOCK):
                return False
            if not block:
                return True
