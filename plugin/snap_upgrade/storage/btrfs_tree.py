"""Which volumes there are and where, read from the tree of roots itself.

The rule: a volume whose path cannot be told is listed all the same. Anybody may make one: Linux tells no path that is
longer than a page. Its path is then that of the volume around it, ``?//`` and its number. No path has an empty part,
so that no volume is ever at such a place, and whoever asks for it is refused.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from snap_upgrade.core.names import UNTOLD, is_told
from snap_upgrade.storage import btrfs_facts
from snap_upgrade.system import kernel

_ROOT_TREE, _INODE_REF = 1, 12
_ROOT_ITEM, _ROOT_BACKREF, _ROOT_REF = 132, 144, 156
_MAX = (1 << 64) - 1
_LAST_FREE = _MAX - 255
_LONGEST = 4095  # bytes of a path, as Linux has it
# struct btrfs_root_item: generation, flags, generation_v2, three uuids, four transids, four times.
_OLD_ITEM = struct.Struct("<160xQ40xQ")
_ITEM = struct.Struct("<160xQ40xQ23xQ16s16s16sQQQQQIQIQIQI")
_REF = struct.Struct("<QQH")  # struct btrfs_root_ref: folder, sequence, length of the name that follows


class Info(NamedTuple):
    """What the tree of roots says of one volume; the fields are called as those of btrfsutil."""

    id: int
    parent_id: int
    flags: int
    uuid: bytes
    parent_uuid: bytes
    received_uuid: bytes
    generation: int
    ctransid: int
    otransid: int
    ctime: float
    otime: float


def volumes(fd: int) -> dict[int, tuple[Info, str]] | None:
    """Return every volume but the top level with its path, by number; None if one was moved in the middle.

    One that has no place at this moment is left out.
    """
    items: dict[int, bytes] = {}
    places: dict[int, tuple[int, bytes]] = {}
    low, high = (kernel.FIRST_FREE, _ROOT_ITEM, 0), (_LAST_FREE, _ROOT_BACKREF, _MAX)
    for number, kind, offset, data in _items(fd, low, high, size=65536):
        if kind == _ROOT_ITEM:
            items[number] = data
        elif kind == _ROOT_BACKREF:
            places[number] = (offset, data)
    namer = _Namer(fd)
    try:
        for number in places:
            namer.learn(number, places)
    except FileNotFoundError:
        return None
    found = {number: (_info(number, places[number][0], items[number]), path)
             for number, path in namer.paths.items() if number in places and number in items}  # fmt: skip
    # Two at one place: between the looks at them they changed places.
    return found if len({path for _, path in found.values()}) == len(found) else None


def inside(fd: int, outer: int, path: str) -> list[tuple[Info, str]]:
    """Return the volumes inside number *outer*, which is at *path*, deepest first; EAGAIN if they move all the time."""
    for _ in btrfs_facts.looks():
        found = _inside(fd, outer, path)
        if found is not None:
            return found
    raise OSError(errno.EAGAIN, "they change faster than they can be listed")


def _inside(fd: int, outer: int, path: str) -> list[tuple[Info, str]] | None:
    """As `inside`, by one look; None if one moved in the middle."""
    namer = _Namer(fd)
    namer.paths[outer] = path
    found: dict[int, tuple[Info, str]] = {}
    waiting = [outer]
    while waiting:
        parent = waiting.pop()
        for _, kind, number, data in _items(fd, (parent, _ROOT_REF, 0), (parent, _ROOT_REF, _MAX)):
            if kind != _ROOT_REF or number in found:
                continue
            item = next((one[3] for one in _items(fd, (number, _ROOT_ITEM, 0), (number, _ROOT_ITEM, _MAX))), None)
            try:
                namer.learn(number, {number: (parent, data)})
            except FileNotFoundError:
                return None
            if item is None:
                return None
            found[number] = (_info(number, parent, item), namer.paths[number])
            waiting.append(number)
    return list(reversed(found.values()))


def path_of(fd: int, number: int) -> str:
    """Return where volume *number* is, or what stands for it; FileNotFoundError if it is nowhere at this moment."""
    places: dict[int, tuple[int, bytes]] = {}
    at = number
    while at != kernel.TOP_LEVEL and at not in places:
        for _, kind, parent, data in _items(fd, (at, _ROOT_BACKREF, 0), (at, _ROOT_BACKREF, _MAX)):
            if kind == _ROOT_BACKREF:
                places[at] = (parent, data)
        if at not in places:
            break
        at = places[at][0]
    namer = _Namer(fd)
    namer.learn(number, places)
    if number not in namer.paths:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"volume {number}")
    return namer.paths[number]


def steps_to(fd: int, number: int) -> list[bytes]:
    """Return the names that lead from the top level to volume *number*, also where no path of it can be told."""
    steps: list[bytes] = []
    while number != kernel.TOP_LEVEL:
        found = _items(fd, (number, _ROOT_BACKREF, 0), (number, _ROOT_BACKREF, _MAX))
        number, data = next(((one[2], one[3]) for one in found if one[1] == _ROOT_BACKREF), (0, b""))
        if not number:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a volume that moves")
        inode, _sequence, length = _REF.unpack_from(data)
        steps.append(data[_REF.size : _REF.size + length])
        while inode != kernel.FIRST_FREE:
            entry = kernel.tree_search(fd, number, (inode, _INODE_REF, 0), (inode, _INODE_REF, _MAX), size=8192)
            if not entry or entry[0][1] != _INODE_REF:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a folder that moves")
            inode, data = entry[0][2], entry[0][4]
            steps.append(data[10 : 10 + int.from_bytes(data[8:10], "little")])  # struct btrfs_inode_ref
    return steps[::-1]


@contextmanager
def folder(top: int, steps: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Open the directory that the names *steps* lead to, never through a symbolic link; yield it and the last name."""
    *folders, name = steps
    fd = os.dup(top)
    try:
        for one in folders:
            below = os.open(one, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, name
    finally:
        os.close(fd)


def _items(
    fd: int, low: tuple[int, int, int], high: tuple[int, int, int], size: int = 8192
) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (object, type, offset, data) of the tree of roots from *low* to *high*, *size* bytes at a time."""
    while items := kernel.tree_search(fd, _ROOT_TREE, low, high, size=size):
        for number, kind, offset, _transid, data in items:
            yield number, kind, offset, data
        number, kind, offset = items[-1][:3]
        low = (number, kind, offset + 1) if offset < _MAX else (number, kind + 1, 0)
        if low > high:
            return


def _info(number: int, parent: int, item: bytes) -> Info:
    none = bytes(16)
    generation, flags = _OLD_ITEM.unpack_from(item)
    if len(item) >= _ITEM.size:
        _, _, second, own, origin, received, *rest = _ITEM.unpack_from(item)
        changed, made, _sent, _received, *times = rest
        # Where the two differ, a Linux before 3.6 wrote the item last and knew nothing of what follows.
        if second == generation:
            return Info(number, parent, flags, own, origin, received, generation, changed, made,
                        times[0] + times[1] / 1e9, times[2] + times[3] / 1e9)  # fmt: skip
    return Info(number, parent, flags, none, none, none, generation, 0, 0, 0.0, 0.0)


class _Namer:
    """The paths of volumes by number, and the folders that were looked up for them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.paths = {kernel.TOP_LEVEL: ""}
        self._folders: dict[tuple[int, int], bytes | None] = {}

    def learn(self, number: int, places: dict[int, tuple[int, bytes]]) -> None:
        """Add *number* and the volumes around it; *places* gives the volume around each and its entry there."""
        chain: list[int] = []
        at = number
        while at not in self.paths:
            if at not in places or len(chain) > len(places):
                return  # one on the way is being moved
            chain.append(at)
            at = places[at][0]
        for one in reversed(chain):
            parent, data = places[one]
            inode, _sequence, length = _REF.unpack_from(data)
            name = data[_REF.size : _REF.size + length]
            self.paths[one] = _joined(self.paths[parent], self._folder(parent, inode), name, one)

    def _folder(self, volume: int, inode: int) -> bytes | None:
        """Return the path of a folder in *volume*, empty or ending in a slash; None if it cannot be told."""
        if inode == kernel.FIRST_FREE:
            return b""
        key = (volume, inode)
        if key not in self._folders:
            try:
                self._folders[key] = kernel.inode_path(self._fd, volume, inode)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                self._folders[key] = None
        return self._folders[key]


def _joined(base: str, folder: bytes | None, name: bytes, number: int) -> str:
    """Return the path of the volume *number* in the volume at *base*, or what stands for it."""
    if folder is not None and is_told(base):
        path = os.fsencode(f"{base}/" if base else "") + folder + name
        if len(path) <= _LONGEST:
            return os.fsdecode(path)
    known = base.partition(UNTOLD)[0].rstrip("/")
    return f"{known}/{UNTOLD}{number}" if known else f"{UNTOLD}{number}"
