"""What btrfs knows beside its volumes: space, quota, names of the devices, and the facts that decide the layout.

The rule: reads only, and starts nothing: no quota, no rescan.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator

from snap_upgrade.core.layout import TOGETHER
from snap_upgrade.core.model import Space
from snap_upgrade.system import kernel

_DATA, _METADATA, _RESERVE = 1, 4, 1 << 49
_PROFILES = ((1 << 4, 2), (1 << 5, 2), (1 << 6, 2), (1 << 9, 3), (1 << 10, 4))  # RAID1, DUP, RAID10, RAID1C3, RAID1C4
_QUOTA_TREE, _QGROUP_STATUS, _QGROUP_INFO = 8, 240, 242
_QUOTA_ON, _QUOTA_RESCAN, _QUOTA_INCONSISTENT = 1, 2, 4
_GET_LABEL = kernel._ioctl_number(2, 49, 256)
_GIB = 1 << 30
_ROOT_ITEM, _ORPHAN_ITEM = 132, 48
_MAX = (1 << 64) - 1
_LAST_FREE, _ORPHANS = _MAX - 255, _MAX - 4  # -256 and -5: BTRFS_LAST_FREE_OBJECTID, BTRFS_ORPHAN_OBJECTID


def looks() -> Iterator[None]:
    """Yield for each look at something that is being moved; at most for a second.

    A move takes some microseconds, unless its process loses the processor in the middle: then we have to give ours up.
    """
    for number in range(200):
        yield
        if number >= 100:
            time.sleep(0.01)


def copies(flags: int) -> int:
    """Return how many bytes of a device one byte of this kind of space takes."""
    return next((count for bit, count in _PROFILES if flags & bit), 1)


def space_from(kinds: Iterable[tuple[int, int, int]], devices: Iterable[tuple[int, int]], kernel_says: int) -> Space:
    """Return the space from *kinds* (flags, total, used), *devices* (total, allocated) and statfs' *kernel_says*.

    One more chunk of metadata is set aside where the present ones are nearly full: btrfs is full when metadata is,
    whatever is free for data, and statfs does not say so before it has happened.
    """
    sizes = list(devices)
    total = sum(size for size, _ in sizes)
    unallocated = sum(max(0, size - used) for size, used in sizes)
    data_free = metadata_free = reserve = 0
    data_copies = metadata_copies = 1
    for flags, size, used in kinds:
        if flags & _RESERVE:
            reserve = size
        elif flags & _METADATA:
            metadata_free += size - used
            metadata_copies = copies(flags)
        elif flags & _DATA:
            data_free += size - used
            data_copies = copies(flags)
    metadata_free = max(0, metadata_free - reserve)
    # fs/btrfs/volumes.c: a metadata chunk has 256 MiB, 1 GiB above 50 GiB, and at most a tenth of the devices.
    chunk = min(_GIB if total > 50 * _GIB else _GIB // 4, total // 10)
    aside = chunk * metadata_copies if metadata_free < chunk // 2 else 0
    available = data_free + max(0, unallocated - aside) // data_copies
    if not metadata_free and not unallocated:
        available = 0
    return Space(total, max(0, min(available, kernel_says)), unallocated, metadata_free)


def volume_numbers(fd: int) -> set[int]:
    """Return the numbers of all subvolumes but the top level, from items that no rename touches."""
    roots = {key[0] for key in _root_keys(fd, (kernel.FIRST_FREE, _ROOT_ITEM, 0), (_LAST_FREE, _ROOT_ITEM, _MAX))
             if key[1] == _ROOT_ITEM}  # fmt: skip
    # Destroyed ones keep their root until the cleaner comes, but are orphans from the same transaction on.
    orphans = {key[2] for key in _root_keys(fd, (_ORPHANS, _ORPHAN_ITEM, 0), (_ORPHANS, _ORPHAN_ITEM, _MAX))}
    return roots - orphans


def _root_keys(fd: int, low: tuple[int, int, int], high: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    """Yield the keys of the tree of roots from *low* to *high*."""
    while items := kernel.tree_search(fd, 1, low, high):
        for number, kind, offset, _transid, _data in items:
            yield number, kind, offset
        number, kind, offset = items[-1][:3]
        low = (number, kind, offset + 1) if offset < _MAX else (number, kind + 1, 0)
        if low > high:
            return


def devices(fd: int) -> list[tuple[int, int, str]]:
    """Return (bytes, allocated, path) of every device of the file system; a missing one is left out."""
    highest, count, _ = kernel.filesystem_info(fd)
    found: list[tuple[int, int, str]] = []
    for number in range(highest + 1):
        if len(found) == count:
            break
        try:
            found.append(kernel.device_info(fd, number))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
    return found


def space(fd: int) -> Space:
    """Return the space of the file system of *fd*."""
    status = os.fstatvfs(fd)
    sizes = [(size, used) for size, used, _ in devices(fd)]
    return space_from(kernel.space_info(fd), sizes, status.f_bavail * status.f_frsize)


def exclusive_bytes(fd: int, subvolid: int) -> int | None:
    """Return the exclusive bytes of the volume as quota has them on disk; None without a quota that is consistent."""
    try:
        state = kernel.tree_search(fd, _QUOTA_TREE, (0, _QGROUP_STATUS, 0), (0, _QGROUP_STATUS, 0))
        info = kernel.tree_search(fd, _QUOTA_TREE, (0, _QGROUP_INFO, subvolid), (0, _QGROUP_INFO, subvolid))
    except OSError as error:
        if error.errno == errno.ENOENT:  # there is no quota tree: quota is off
            return None
        raise
    if not state or not info:
        return None
    return quota_says(state[0][4], info[0][4])


def quota_says(state: bytes, info: bytes) -> int | None:
    """Return the exclusive bytes from the items of the quota's state and of a volume; None if they mean nothing."""
    if len(state) < 24 or len(info) < 32:
        return None
    flags = struct.unpack_from("<Q", state, 16)[0]
    if not flags & _QUOTA_ON or flags & (_QUOTA_RESCAN | _QUOTA_INCONSISTENT):
        return None
    return int(struct.unpack_from("<Q", info, 24)[0])


def names(fd: int, paths: Iterable[str]) -> frozenset[str]:
    """Return the spellings by which a kernel line or fstab may name the file system on the devices *paths*."""
    real = {os.path.realpath(path) for path in paths}
    found = set(paths) | real
    label = bytearray(256)
    fcntl.ioctl(fd, _GET_LABEL, label, True)
    text = os.fsdecode(bytes(label).split(b"\0", 1)[0])
    if text:
        found.add(f"LABEL={text}")
    for folder, key in (("by-partuuid", "PARTUUID"), ("by-partlabel", "PARTLABEL"), ("by-label", "LABEL"),
                        ("by-id", ""), ("by-path", ""), ("by-uuid", "")):  # fmt: skip
        found |= _links(f"/dev/disk/{folder}", key, real)
    return frozenset(found | _links("/dev/mapper", "", real) | _logical_volumes(real))


def _links(folder: str, key: str, real: set[str]) -> set[str]:
    """Return the links in *folder* that lead to one of *real*, also as KEY=value."""
    found = set()
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = f"{folder}/{name}"
        if os.path.realpath(path) in real:
            found.add(path)
            if key:
                found.add(f"{key}={_udev_plain(name)}")
    return found


def _logical_volumes(real: set[str], folder: str = "/dev/mapper") -> set[str]:
    """Return /dev/GROUP/VOLUME names of *real* (device mapper names join the two with one dash, doubling others)."""
    found = set()
    for path in _links(folder, "", real):
        group, dash, volume = path[len(folder) + 1 :].replace("--", "\0").partition("-")
        if dash:
            found.add(f"/dev/{group}/{volume}".replace("\0", "-"))
    return found


def _udev_plain(name: str) -> str:
    """Return *name* without the ``\\x20`` of udev."""
    first, *others = os.fsencode(name).split(b"\\x")
    out = first
    for part in others:
        try:
            out += bytes((int(part[:2], 16),)) + part[2:]
        except ValueError:
            out += b"\\x" + part
    return os.fsdecode(out)


def elsewhere(root: str) -> tuple[str, ...]:
    """Return those of TOGETHER and /boot that are not on the volume *root* itself."""
    own = os.stat(root).st_dev
    found = []
    for path in (*TOGETHER, "/boot"):
        try:
            # Every subvolume has a device number of its own, so this sees nested ones as well as other file systems.
            if os.stat(root.rstrip("/") + path, follow_symlinks=False).st_dev != own:
                found.append(path)
        except FileNotFoundError:
            continue
    return tuple(found)


def swap_files(swaps: str, root: str) -> tuple[str, ...]:
    """Return the active swap files of /proc/swaps that lie on the volume *root*."""
    own = os.stat(root).st_dev
    found = []
    for path in swap_paths(swaps):
        try:
            if os.stat(path).st_dev == own:
                found.append(path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # the path is another namespace's, or the file was removed in use
    return tuple(found)


def swap_paths(swaps: str) -> list[str]:
    """Return the paths of the files (not devices) in the text of /proc/swaps."""
    found = []
    for line in swaps.split("\n")[1:]:
        # The kernel escapes space, tab, newline and backslash in a path; other spaces of Unicode stand as they are.
        path, _, rest = line.partition(" ")
        if rest.replace("\t", " ").lstrip(" ").startswith("file "):
            found.append(kernel.unescape(path))
    return [path for path in found if path.startswith("/") and "\0" not in path]
