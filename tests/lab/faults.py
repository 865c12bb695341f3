"""Devices that fail and file systems that are full, for tests of what happens then.

The rule: the failure is a real one. The kernel's block layer reports EIO because the device below did, and ENOSPC
because btrfs found no room; nothing of the code under test is replaced.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import blockdev
from tests.lab.blocklog import make_btrfs
from tests.lab.served import ServedDevice

MIB = 1 << 20


class FailingDevice(ServedDevice):
    """``with FailingDevice(image) as dev:`` gives ``dev.path``, a device that fails when told to.

    What the page cache has is still readable after ``fail_all``: the kernel asks the device for the rest only.
    """

    def fail_writes(self, after: int = 0) -> None:
        """Fail every write, flush and discard once *after* more have been done."""
        self.command(f"fail-writes {after}")

    def fail_all(self) -> None:
        """Fail every request from now on."""
        self.command("fail-all")

    def heal(self) -> None:
        """Fail nothing any more. What failed stays failed: btrfs that turned read-only needs a new mount."""
        self.command("heal")


def fill(directory: Path, headroom: int = 0, name: str = "ballast") -> None:
    """Fill the file system of *directory* until not a page more fits, then give *headroom* bytes of file data back.

    Leaves files whose names begin with *name*. With headroom 0 also no small file fits that btrfs would keep inline.
    """
    reserve = directory / f"{name}-headroom"
    if headroom:
        with open(reserve, "xb") as file:
            os.posix_fallocate(file.fileno(), 0, headroom)
    for number, chunk in enumerate((MIB, 64 << 10, 4096)):
        _write_until_full(directory / f"{name}-{number}", chunk)
    if not headroom:
        _small_files_until_full(directory / f"{name}-small")
    if headroom:
        reserve.unlink()
        blockdev.syncfs(directory)


@contextmanager
def _until_full() -> Iterator[None]:
    """End the block, and nothing but the block, at the first ENOSPC."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _write_until_full(path: Path, chunk: int) -> None:
    """Write *chunk* bytes that do not compress, again and again; small ones synced one by one."""
    data = os.urandom(chunk)
    with _until_full(), open(path, "xb", buffering=0) as file:
        while True:
            rest = data
            while rest:
                rest = rest[file.write(rest) :]
            if chunk < MIB:
                os.fsync(file.fileno())


def _small_files_until_full(directory: Path) -> None:
    """Fill what is left for metadata with files that are kept inline."""
    with _until_full():
        directory.mkdir()
        for number in range(1 << 20):
            with open(directory / str(number), "xb", buffering=0) as file:
                file.write(b"x" * 1500)
        raise AssertionError(f"{directory}: a million files and still not full")


def full_image(
    path: Path,
    headroom: int = 0,
    size: int = 256 * MIB,
    mixed: bool = False,
    populate: Callable[[Path], None] | None = None,
) -> Path:
    """Make a btrfs in the new file *path*, have *populate* put in what the test needs, and fill the rest.

    *mixed* keeps data and metadata in the same block groups, so that data leaves no room for metadata either.
    """
    with open(path, "xb") as file:
        file.truncate(size)
    make_btrfs(path, *(["--mixed"] if mixed else []))
    with blockdev.mounted(path) as root:
        if populate:
            populate(root)
        fill(root, headroom)
    return path
