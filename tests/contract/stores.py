"""The storages that the contract is held to: each makes a small real one with a root in it.

The rule: a case says nothing of its kind, so that the suite runs unchanged over each.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from snap_upgrade.core.model import Volume
from snap_upgrade.storage import Storage
from snap_upgrade.storage.btrfs import BtrfsStorage
from snap_upgrade.system import kernel
from tests.lab import blockdev


@dataclass
class Case:
    """A storage with a mounted *root*. *fill* leaves no byte free; *read_only* makes the medium so."""

    storage: Storage
    root: Path
    fill: Callable[[], None]
    read_only: Callable[[], None]
    again: Callable[[], Storage]
    extra: dict[str, str] = field(default_factory=dict)
    others: list[BtrfsStorage] = field(default_factory=list)  # closed at the end, also when the test fails

    @property
    def running(self) -> Volume:
        return self.storage.layout().running


def _fill(root: Path) -> Callable[[], None]:
    def fill() -> None:
        # Data first, then metadata by inline files, until neither takes any more.
        for size in (1 << 22, 4096, 1500, 1):
            number = 0
            while True:
                try:
                    (root / f"fill-{size}-{number}").write_bytes(os.urandom(size))
                except OSError:
                    break
                number += 1
        fd = _open(root)
        kernel.sync(fd)
        os.close(fd)

    return fill


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


@contextmanager
def btrfs(tmp: Path, subvol: str = "@", size: int = 256 << 20) -> Iterator[Case]:
    image = tmp / "btrfs.img"
    with open(image, "xb") as file:
        file.truncate(size)
    subprocess.run(["/sbin/mkfs.btrfs", "--quiet", str(image)], check=True, stdout=subprocess.DEVNULL)
    with blockdev.attached(image) as device:
        with blockdev.mounted_device(device) as top:
            parts = subvol.split("/")
            for part in ["/".join(parts[:n]) for n in range(1, len(parts))]:
                (top / part).mkdir()
            fd = _open(top / "/".join(parts[:-1]))
            kernel.create_subvolume(fd, os.fsencode(parts[-1]))
            os.close(fd)
            (top / subvol / "etc").mkdir()
        with blockdev.mounted_device(device, options=f"subvol={subvol}") as root:
            made: list[BtrfsStorage] = []

            def make() -> BtrfsStorage:
                line = f'root={device} "rootflags=subvol={subvol}" ro'
                made.append(BtrfsStorage(root, kernel_line=line, fstab="", swaps=""))
                return made[-1]

            def remount() -> None:
                # A new storage opens a read-only file system; the old mount would keep it writable.
                for storage in made:
                    storage.close()
                kernel.mount(str(device), str(root), flags=32 | kernel.MS_RDONLY)

            case = Case(make(), root, _fill(root), remount, make, {"device": str(device)})
            try:
                yield case
            finally:
                for storage in (*made, *case.others):
                    storage.close()


STORES: dict[str, Callable[[Path], AbstractContextManager[Case]]] = {"btrfs": btrfs}
