"""What is mounted where, and mounts of our own.

The rule: a mount is recognised by the device and subvolume the kernel names, never by its path or source name;
what we mount for work is seen by nobody else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from snap_upgrade.system import kernel

_UMOUNT_NOFOLLOW = 8


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. *device* is ``major:minor``; *root* is the path in the file system that is mounted."""

    ident: int
    parent: int
    device: str
    root: str
    point: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def subvolume_id(self) -> int | None:
        """The number of the mounted btrfs subvolume, or None."""
        # subvol= may hold commas and even ",subvolid=7" in its name, and comes last: the first match is the kernel's.
        for option in self.super_options:
            if option.startswith("subvolid="):
                return int(option[9:]) if kernel.is_number(option[9:]) else None
        return None


def parse(text: str) -> list[Mount]:
    """Return the mounts of a mountinfo text, in its order; a line that is none is passed over."""
    found = []
    for line in text.split("\n"):
        fields = kernel.mount_fields(line)
        words = line.split(" ", 3)
        if fields is None or not kernel.is_number(words[1]):
            continue
        ident, root, point, options, fstype, source, supers = fields
        found.append(
            Mount(ident, int(words[1]), words[2], root, point, tuple(options.split(",")), fstype, source,
                  tuple(supers.split(",")))
        )  # fmt: skip
    return found


def mounts() -> list[Mount]:
    """Return the mounts this process sees."""
    return parse(kernel.mountinfo())


def mount_of(path: str) -> Mount:
    """Return the mount that *path* lies on; of several stacked at one place the one in sight."""
    ident = kernel.mount_id(path)
    for mount in mounts():
        if mount.ident == ident:
            return mount
    raise OSError(2, "mountinfo: the mount is not in this namespace", path)


def mounted_on(target: Path) -> Mount | None:
    """Return the mount whose root is *target*, or None if nothing is mounted there."""
    real = os.path.realpath(target)
    mount = mount_of(real)
    return mount if mount.point == real else None


def namespaces() -> Iterator[list[Mount]]:
    """Yield the mounts of every mount namespace that a process is in, ours first, each once."""
    seen = {os.stat("/proc/self/ns/mnt").st_ino}
    yield mounts()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            inode = os.stat(f"/proc/{name}/ns/mnt").st_ino
            if inode in seen:
                continue
            with open(f"/proc/{name}/mountinfo", "rb") as file:
                text = os.fsdecode(file.read())
        except OSError:
            # The process ended while we looked: it holds no namespace any more.
            continue
        seen.add(inode)
        yield parse(text)


def enter_private_namespace() -> None:
    """Move this process into a mount namespace of its own.

    Our mounts stay in it and end with the last process in it; what the host unmounts disappears here too.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_SLAVE)


def attach_volume(device: str, subvolid: int, target: str, read_only: bool = False) -> None:
    """Mount the btrfs subvolume *subvolid* at *target*, in the namespace of this process."""
    descriptor = kernel.detached_mount(device, subvolid, read_only)
    try:
        kernel.move_mount(descriptor, target)
    finally:
        os.close(descriptor)


def detach(target: str, lazy: bool = False) -> None:
    """Unmount what is mounted at *target*, not following a symbolic link; EBUSY if it is in use.

    If *lazy*, only the name goes then: who is inside stays there, on a mount that nobody sees.
    """
    kernel.umount2(target, _UMOUNT_NOFOLLOW | (kernel.MNT_DETACH if lazy else 0))
