"""Snapshots of what is nested in the root and travels with it (``clone_nested``), and the record of the root itself.

The rule: the same places and records as nested.py and flows.adopt make; imported only where there is something to do.
"""

from __future__ import annotations

import os

from snap_upgrade.core import wire
from snap_upgrade.hook import state
from snap_upgrade.system import failpoint, kernel

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def part_name(relative: str) -> str:
    """Return the name of the part that is a snapshot of *relative* (core.plan.part_path; a test compares the two)."""
    return relative.replace("%", "%25").replace(":", "%3A").replace("/", ":")


def take(folder: int, root: int, ident: str, wanted: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Snapshot those of *wanted* that are subvolumes in *root*, beside its snapshot *ident*.

    *folder* is the state. Returns (path inside, uuid, uuid of what it was made from) of each.
    """
    made = []
    for relative in dict.fromkeys(wanted):
        source = _open_nested(folder, root, relative)
        if source is None:
            continue
        try:
            origin = kernel.subvolume_info(source).uuid
            made.append((relative, _snapshot(folder, source, ident, part_name(relative)), origin))
        finally:
            os.close(source)
        failpoint.reach("hook.part.made")
    return made


def record(folder: int, ident: str, parts: list[tuple[str, str, str]]) -> None:
    """Record the *parts* that `take` made."""
    for relative, uuid, origin in parts:
        path = f"{state.STATE}/snap/{ident}{state.PARTS}/{part_name(relative)}"
        state.enrol(folder, uuid, "part", f"snap-{ident}/{relative}", path, origin, ident)
        failpoint.reach("hook.part.recorded")


def _open_nested(folder: int, root: int, relative: str) -> int | None:
    """Return a descriptor of the subvolume *relative* inside that of *root*, None if there is none.

    From the top level, where nothing is mounted over it, and never through a symbolic link.
    """
    inside = [part for part in kernel.root_device()[1].split("/") if part]
    parts = relative.split("/")
    if any(part in ("", ".", "..") for part in parts) or (not inside and parts[0] == state.STATE):
        return None
    fd = os.open("..", _FOLDER, dir_fd=folder)
    try:
        for part in inside:
            fd = _down(fd, part)
        if kernel.subvolume_id(fd) != kernel.subvolume_id(root):
            raise state.BadState("the subvolume of the root is not where the kernel says it is mounted from")
        for part in parts:
            fd = _down(fd, part)
    except (FileNotFoundError, NotADirectoryError):
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    if os.fstat(fd).st_ino != kernel.FIRST_FREE:
        os.close(fd)
        return None
    return fd


def _down(fd: int, name: str) -> int:
    """Return the folder *name* in *fd*, which is closed. A link counts as no folder (ENOTDIR)."""
    below = os.open(name, _FOLDER, dir_fd=fd)
    os.close(fd)
    return below


def _snapshot(folder: int, source: int, ident: str, name: str) -> str:
    place = f"snap/{ident}{state.PARTS}"
    try:
        os.mkdir(place, 0o700, dir_fd=folder)
    except FileExistsError:
        pass  # it is not the first
    parts = os.open(place, _FOLDER, dir_fd=folder)
    try:
        kernel.snapshot(source, parts, os.fsencode(name), True)
        fd = os.open(name, _FOLDER, dir_fd=parts)
        try:
            return str(kernel.subvolume_info(fd).uuid)
        finally:
            os.close(fd)
    finally:
        os.close(parts)


def drop(snapshots: int, ident: str) -> list[str]:
    """Destroy the parts of snapshot *ident* in the folder *snapshots*; return the uuids whose records go with them."""
    place = f"{ident}{state.PARTS}"
    folder = os.open(place, _FOLDER, dir_fd=snapshots)
    gone = []
    try:
        for name in os.listdir(folder):
            fd = os.open(name, _FOLDER, dir_fd=folder)
            try:
                info = kernel.subvolume_info(fd)
                is_volume = os.fstat(fd).st_ino == kernel.FIRST_FREE
            finally:
                os.close(fd)
            if not (is_volume and info.read_only and info.parent_uuid):
                raise state.BadState(f"{state.STATE}/snap/{place}/{name} is no snapshot of ours; it is kept")
            kernel.destroy_subvolume(folder, os.fsencode(name))
            failpoint.reach("hook.part.gone")
            gone.append(str(info.uuid))
    finally:
        os.close(folder)
    os.rmdir(place, dir_fd=snapshots)
    return gone


def adopt(folder: int, running: str) -> None:
    """Record the running root *running*, which was there before us, under a name that is free."""
    if not running.strip("0"):
        return  # the top level of an old file system has no uuid; a command finds another name for it
    taken = _names(folder)
    name, number = "initial", 2
    while name in taken:
        name, number = f"initial-{number}", number + 1
    path = kernel.root_device()[1].strip("/")
    state.enrol(folder, running, "environment", name, path, None, None, True)


def _names(folder: int) -> set[str]:
    """Return every name on record; a record that is not understood has none."""
    records = os.open("records", _FOLDER, dir_fd=folder)
    try:
        found = [state.read(records, entry) for entry in os.listdir(records) if not entry.startswith(".")]
    finally:
        os.close(records)
    names = set()
    for content in found:
        try:
            known = wire.decode((content or b"").decode())
        except (ValueError, RecursionError):
            continue  # status reports it
        if isinstance(known, dict):
            names.add(str(known.get("name")))
    return names
