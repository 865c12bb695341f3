"""The disks of machines: btrfs images in every layout that people have, made once and copied.

The one rule: every copy gets a file system id of its own, for the kernel refuses to mount
two file systems that it cannot tell apart, and several tests run at once.
"""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import btrfsutil

from tests.lab import kernel, roots

TOP_LEVEL = 5
_UNUSED_DAYS = 3
_TOOLS = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_FSID_OFFSET = 0x10000 + 0x20  # btrfs_super_block.fsid of the first copy


@dataclass(frozen=True)
class Layout:
    """Where the root is on the disk and what makes it boot.

    *subvol*: path of the root below the top level, None for the top level itself.
    *select*: what fstab says about `/`; with "default" it says nothing and the default subvolume boots.
    *extra*: other subvolumes of the top level, each with where it is mounted.
    *nested*: subvolumes inside the root.
    *kernel_line*: what ``rootflags=`` says: the path, the number, or nothing. "auto" is what update-grub
    writes: the path, and nothing for the top level and for "default".
    """

    subvol: str | None = "@"
    select: Literal["fstab-subvol", "fstab-subvolid", "default"] = "fstab-subvol"
    extra: tuple[tuple[str, str], ...] = ()
    nested: tuple[str, ...] = ()
    kernel_line: Literal["auto", "subvol", "subvolid", "none"] = "auto"

    @property
    def kernel_says(self) -> Literal["subvol", "subvolid", "none"]:
        """What the kernel line names the root by."""
        if self.kernel_line != "auto":
            return self.kernel_line
        return "none" if self.subvol is None or self.select == "default" else "subvol"


@dataclass(frozen=True)
class Boots:
    """What the kernel mounts as `/`: a subvolume's path or id; neither for the default subvolume."""

    subvol: str | None
    subvolid: int | None

    def kernel_line(self, fsid: uuid.UUID) -> str:
        """Return the kernel command line that says so."""
        words = ["BOOT_IMAGE=/boot/vmlinuz", f"root=UUID={fsid}", "ro"]
        if self.subvol is not None:
            flag = f"rootflags=subvol={self.subvol}"
            words.append(f'"{flag}"' if " " in flag else flag)
        if self.subvolid is not None:
            words.append(f"rootflags=subvolid={self.subvolid}")
        return " ".join([*words, "quiet"])


def master(release: str, extra: tuple[str, ...], layout: Layout, size: str, lists: bool = False) -> Path:
    """Return a disk with Debian on it in *layout*, made if it is not cached; never to be mounted itself."""
    tar = roots.root_tar(release, extra, lists=lists)
    # This file is the rest of the recipe: after a change to it no disk that was made before is used.
    maker = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    recipe = json.dumps([maker, tar.name, dataclasses.asdict(layout), size])
    target = roots.cache_dir() / f"disk-{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.img"
    # A lock for all of them: a disk that is being made must not be taken for an old one.
    if not target.exists():
        with roots.locked("disks"):
            if not target.exists():
                _forget_unused(target.parent.glob("disk-*.img"))
                _make(tar, layout, size, target)
    os.utime(target)
    return target


def _make(tar: Path, layout: Layout, size: str, target: Path) -> None:
    made = target.with_suffix(".part")
    made.unlink(missing_ok=True)
    try:
        _run("truncate", f"--size={size}", str(made))
        _run("mkfs.btrfs", "--quiet", "--label", "lab", str(made))
        loop = kernel.Loop(made)
        try:
            top_fd = kernel.mount_detached(loop.device, "btrfs", {"compress": "zstd:1", "subvolid": str(TOP_LEVEL)})
            try:
                _fill(tar, layout, kernel.fd_path(top_fd))
            finally:
                os.close(top_fd)
        finally:
            loop.close()
        made.rename(target)
    finally:
        made.unlink(missing_ok=True)


def _fill(tar: Path, layout: Layout, top: Path) -> None:
    root = top
    if layout.subvol is not None:
        root = top / layout.subvol
        root.parent.mkdir(parents=True, exist_ok=True)
        btrfsutil.create_subvolume(str(root))
    options = ("--extract", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--preserve-permissions")
    _run("tar", *options, "--file", str(tar), "--directory", str(root))
    for subvol, where in layout.extra:
        inside = root / where.lstrip("/")
        btrfsutil.create_subvolume(str(top / subvol))
        if inside.exists():
            _run("cp", "--archive", "--no-target-directory", str(inside), str(top / subvol))
            shutil.rmtree(inside)
        inside.mkdir(parents=True)
    for nested in layout.nested:
        (root / nested).parent.mkdir(parents=True, exist_ok=True)
        btrfsutil.create_subvolume(str(root / nested))
    if layout.select == "default" and layout.subvol is not None:
        btrfsutil.set_default_subvolume(str(root))


def _forget_unused(disks: Iterable[Path]) -> None:
    for disk in disks:
        if disk.stat().st_mtime < time.time() - _UNUSED_DAYS * 86400:
            disk.unlink()


def clone(master_disk: Path, target: Path, fsid: uuid.UUID) -> None:
    """Copy a disk and give the copy the file system id *fsid*."""
    copy(master_disk, target)
    # Changes the superblocks only (METADATA_UUID): milliseconds, whatever is on the disk.
    _run("btrfstune", "-f", "-M", str(fsid), str(target))
    if fsid_of(target) != fsid:
        raise AssertionError(f"btrfstune gave {target} the id {fsid_of(target)}, not {fsid}")


def fsid_of(disk: Path) -> uuid.UUID:
    """Return the file system id that is written on a disk."""
    with disk.open("rb") as file:
        file.seek(_FSID_OFFSET)
        return uuid.UUID(bytes=file.read(16))


def copy(source: Path, target: Path) -> None:
    """Copy a disk, holes as holes, sharing blocks where the host's file system can."""
    _run("cp", "--reflink=auto", "--sparse=always", str(source), str(target))


def configure(root: Path, layout: Layout, fsid: uuid.UUID, ids: dict[str, int]) -> None:
    """Write into a machine's root what differs from machine to machine: fstab, names, how to reach the mirror."""
    options = ["defaults", "compress=zstd:1"]
    if layout.subvol is not None and layout.select == "fstab-subvol":
        options.append(f"subvol={layout.subvol}")
    if layout.subvol is not None and layout.select == "fstab-subvolid":
        options.append(f"subvolid={ids[layout.subvol]}")
    lines = [(f"UUID={fsid}", "/", options)]
    lines += [(f"UUID={fsid}", where, ["defaults", f"subvol={subvol}"]) for subvol, where in layout.extra]
    text = "".join(f"{what} {where} btrfs {_escaped(','.join(options))} 0 0\n" for what, where, options in lines)
    (root / "etc/fstab").write_text(text)
    (root / "etc/hostname").write_text("lab\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost lab\n::1 localhost\n")
    resolv = root / "etc/resolv.conf"
    resolv.unlink(missing_ok=True)
    resolv.write_bytes(Path("/etc/resolv.conf").read_bytes())


def _escaped(text: str) -> str:
    """Return a field as fstab(5) wants it."""
    return text.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def what_boots(layout: Layout) -> Boots:
    """Return what the kernel line of *layout* makes boot now."""
    if layout.kernel_says == "subvol":
        return Boots(layout.subvol or "/", None)
    if layout.kernel_says == "subvolid":
        # The number was written when the system was installed: the first subvolume that was made.
        return Boots(None, TOP_LEVEL if layout.subvol is None else 256)
    return Boots(None, None)


def subvolume_ids(top: Path) -> dict[str, int]:
    """Return all subvolumes but the top level: path below the top level to id."""
    with btrfsutil.SubvolumeIterator(str(top), top=TOP_LEVEL) as found:
        return dict(found)


def fill(folder: Path, leave_bytes: int) -> None:
    """Allocate files in *folder* until the file system refuses, then give *leave_bytes* back."""
    folder.mkdir()
    number = 0
    for size in (64 << 20, 8 << 20, 1 << 20):
        while True:
            path = folder / str(number)
            try:
                with path.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                path.unlink()
                break
            number += 1
    while leave_bytes > 0:
        number -= 1
        last = folder / str(number)
        kept = max(0, last.stat().st_size - leave_bytes)
        leave_bytes -= last.stat().st_size - kept
        os.truncate(last, kept)
    # Space that was freed can be used only after the commit that frees it.
    btrfsutil.sync(str(folder))


def _run(*command: str) -> None:
    done = subprocess.run(command, env=_TOOLS, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
