"""What is in a tree, in a form that two trees can be compared in.

The one rule: nothing is left out. Whoever wants to ignore a path says so where the comparison is made.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """Everything about one path that a user could notice; *target* of a link, *sha256* of a file."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    device: int
    xattrs: tuple[tuple[str, bytes], ...]
    target: str
    sha256: str


_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def manifest(root: Path) -> dict[str, Entry]:
    """Return an entry for every path below *root*, and for *root* itself under ".".

    Names that are not UTF-8 appear as os.fsdecode writes them. Other subvolumes that are
    nested in *root* are entered.
    """
    found = {".": _entry(str(root) + "/.")}
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(root / folder) as entries:
            for item in entries:
                path = os.path.join(folder, item.name)
                found[path] = _entry(item.path)
                if item.is_dir(follow_symlinks=False):
                    pending.append(path)
    return found


def _entry(path: str) -> Entry:
    status = os.lstat(path)
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return Entry(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        # The size of a folder on btrfs is the sum of its names: said by them already.
        size=0 if kind == "folder" else status.st_size,
        mtime_ns=status.st_mtime_ns,
        device=status.st_rdev,
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
        target=os.readlink(path) if kind == "link" else "",
        sha256=_sha256(path) if kind == "file" else "",
    )


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(before: dict[str, Entry], after: dict[str, Entry]) -> list[str]:
    """Return one line for each path that is not the same in both, saying in what."""
    lines = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None:
            lines.append(f"{path}: only after")
        elif new is None:
            lines.append(f"{path}: only before")
        elif old != new:
            fields = [name for name in Entry._fields if getattr(old, name) != getattr(new, name)]
            lines.append(f"{path}: {', '.join(fields)}")
    return lines
