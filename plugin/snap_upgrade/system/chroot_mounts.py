"""Furnishes the root of an environment with what a program expects: /proc, /sys, /dev, /run, /tmp.

The rule: everything is mounted in a private mount namespace and made new. What a script does to /run, /tmp or the
names in /dev ends with it, and no socket or pid file of the running system is in its sight.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from snap_upgrade.system import kernel

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
# Mounted anew below, or file systems of the running system's own that are no devices.
_NOT_COPIED = {"pts", "shm", "mqueue", "hugepages", "ptmx"}


@dataclass(frozen=True, slots=True)
class Node:
    """One name in /dev: a device, a folder or a link."""

    path: str
    mode: int
    device: int
    uid: int
    gid: int
    link: str


def furnish(target: str, network: bool) -> None:
    """Mount what programs need into the root at *target*. Runs in the private namespace, as PID 1 of its own.

    Sources are read before, and the mount points found after a chroot: a link in the environment (``/tmp`` to
    ``/var/tmp``) leads within it, not into the running system. File systems that the running system has below its
    root and that are no part of the environment (``/boot``, ``/home`` on their own) are not mounted.
    """
    nodes, resolver = survey("/dev"), _resolver()
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chroot(target)
    try:
        os.chdir("/")
        _mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        _mount("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC | kernel.MS_RDONLY)
        _mount("tmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=0755,size=4m")
        _populate(nodes)
        _mount("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755")
        os.mkdir("/run/lock")
        os.chmod("/run/lock", 0o1777)  # noqa: S103
        _mount("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777")  # noqa: S108
        _provide_resolver(resolver, network)
    finally:
        os.fchdir(here)
        os.chroot(".")
        os.close(here)


def survey(folder: str) -> list[Node]:
    """Return the devices, folders and links in *folder*, parents first; pipes, sockets and files are left out.

    What disappears meanwhile (a device pulled out) is not there.
    """
    nodes: list[Node] = []
    _survey(folder, "", os.lstat(folder).st_dev, nodes)
    return nodes


def _survey(folder: str, prefix: str, filesystem: int, nodes: list[Node]) -> None:
    for name in sorted(os.listdir(f"{folder}/{prefix}")):
        path = f"{prefix}{name}"
        if path in _NOT_COPIED:
            continue
        try:
            status = os.lstat(f"{folder}/{path}")
            kind = stat.S_IFMT(status.st_mode)
            link = os.readlink(f"{folder}/{path}") if kind == stat.S_IFLNK else ""
        except FileNotFoundError:
            continue
        if kind not in (stat.S_IFBLK, stat.S_IFCHR, stat.S_IFDIR, stat.S_IFLNK):
            continue
        if kind == stat.S_IFDIR and status.st_dev != filesystem:
            continue
        nodes.append(Node(path, status.st_mode, status.st_rdev, status.st_uid, status.st_gid, link))
        if kind == stat.S_IFDIR:
            _survey(folder, f"{path}/", filesystem, nodes)


def _populate(nodes: list[Node]) -> None:
    """Make the same devices under the same names: GRUB and initramfs-tools look for the disk the root is on.

    Copies of the names, not the running system's /dev: a script that removes one removes its own.
    """
    for node in nodes:
        path = f"/dev/{node.path}"
        if stat.S_ISLNK(node.mode):
            os.symlink(node.link, path)
            continue
        if stat.S_ISDIR(node.mode):
            os.mkdir(path)
        else:
            os.mknod(path, node.mode, node.device)
        os.chown(path, node.uid, node.gid)
        os.chmod(path, stat.S_IMODE(node.mode))
    _mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5")
    os.symlink("pts/ptmx", "/dev/ptmx")
    _mount("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777")  # noqa: S108


def _mount(fstype: str, target: str, flags: int, data: str = "") -> None:
    os.makedirs(target, exist_ok=True)
    kernel.mount(fstype, target, fstype, flags, data)


def _resolver() -> bytes:
    """Return the running system's resolv.conf, through whatever links; nothing if it has none."""
    try:
        return Path("/etc/resolv.conf").read_bytes()
    except FileNotFoundError:
        return b""


def _provide_resolver(content: bytes, network: bool) -> None:
    """Give the environment the resolver of the running system without changing a file of it.

    A link into /run (systemd-resolved) finds its file in the new /run. A plain file is covered, but only where no
    script runs (*network*: lists and downloads): a package that replaces it would find it busy. One that is missing
    stays so.
    """
    name = "/etc/resolv.conf"
    place = os.path.realpath(name)
    if place.startswith("/run/"):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        _write_readable(Path(place), content)
    elif network and content and os.path.isfile(place):
        cover = Path("/run/resolv.conf")
        _write_readable(cover, content)
        kernel.mount(str(cover), place, flags=kernel.MS_BIND)


def _write_readable(path: Path, content: bytes) -> None:
    """Write *path* for everybody to read, whatever the umask: apt resolves names as the user _apt."""
    path.write_bytes(content)
    path.chmod(0o644)
