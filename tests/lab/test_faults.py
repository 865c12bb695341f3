"""Failing devices and full file systems: the failure arrives where the kernel would put it, and nothing hangs.

The rule: no test here waits for ever. A call that could hang runs in a process of its own that can be told apart.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import blockdev
from tests.lab.blockdev import mounted_device
from tests.lab.blocklog import make_btrfs, mounted
from tests.lab.faults import FailingDevice, fill, full_image
from tests.lab.served import ServerGone
from tests.lab.test_blocklog import leftovers

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "image"
    with open(path, "xb") as file:
        file.truncate(512 * MIB)
    make_btrfs(path)
    yield path
    assert leftovers(path) == []


def write_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def test_fsync_raises_and_btrfs_turns_read_only_once_writes_fail(image: Path) -> None:
    with FailingDevice(image) as dev, mounted_device(dev.path) as root:
        write_synced(root / "before", b"b" * MIB)
        dev.fail_writes()
        with pytest.raises(OSError) as caught:
            write_synced(root / "after", b"a" * MIB)
        assert caught.value.errno in (errno.EIO, errno.EROFS)
        with pytest.raises(OSError) as caught:
            (root / "second").mkdir()
            blockdev.syncfs(root)
        assert caught.value.errno in (errno.EIO, errno.EROFS)
        with pytest.raises(OSError) as caught:
            (root / "third").mkdir()
        assert caught.value.errno in (errno.EIO, errno.EROFS)
        assert os.statvfs(root).f_flag & os.ST_RDONLY, "btrfs went on after a commit that failed"
        assert (root / "before").read_bytes() == b"b" * MIB
    with mounted(image) as root:
        assert sorted(os.listdir(root)) == ["before"]


def test_writes_fail_after_the_number_asked_for(image: Path) -> None:
    with FailingDevice(image) as dev:
        fd = os.open(dev.path, os.O_RDWR | os.O_DSYNC)
        dev.fail_writes(after=4)  # a write and its flush, twice
        for number in range(2):
            os.pwrite(fd, b"x" * 4096, 4096 * number)
        with pytest.raises(OSError, match="Input/output error"):
            os.pwrite(fd, b"x" * 4096, 8192)
        dev.heal()
        os.pwrite(fd, b"y" * 4096, 12288)
        os.close(fd)
    with open(image, "rb") as file:
        assert file.read(16384) == b"x" * 8192 + b"\0" * 4096 + b"y" * 4096


def test_reads_fail_after_fail_all_and_a_new_mount_works_after_heal(image: Path) -> None:
    with FailingDevice(image) as dev:
        with mounted_device(dev.path) as root:
            write_synced(root / "file", b"f" * MIB)
        with mounted_device(dev.path) as root:
            dev.fail_all()
            with pytest.raises(OSError, match="Input/output error"):
                (root / "file").read_bytes()
        with pytest.raises(OSError), mounted_device(dev.path):
            pass
        dev.heal()
        with mounted_device(dev.path) as root:
            assert (root / "file").read_bytes() == b"f" * MIB


def test_a_killed_server_means_errors_and_not_a_hang(image: Path) -> None:
    with FailingDevice(image) as dev:
        with mounted_device(dev.path) as root:
            write_synced(root / "before", b"b" * MIB)
            (root / "unwritten").write_bytes(b"u" * MIB)  # dirty pages that the unmount has to give up
            dev.kill_server()
            with pytest.raises(OSError):
                write_synced(root / "after", b"a" * MIB)
        with pytest.raises(ServerGone, match="ended with -9"):
            dev.heal()
    assert blockdev.mount_points(dev.path) == []
    with mounted(image) as root:
        assert (root / "before").read_bytes() == b"b" * MIB


def test_a_server_killed_by_somebody_else_is_reported(image: Path) -> None:
    with pytest.raises(ServerGone, match="ended with -9"), FailingDevice(image) as dev:
        os.kill(dev.server_pid, 9)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_full_image_has_no_room_for_a_page(tmp_path: Path, mixed: bool) -> None:
    def put(root: Path) -> None:
        (root / "mine").write_bytes(b"m" * MIB)

    path = full_image(tmp_path / "full", mixed=mixed, populate=put)
    with mounted(path) as root:
        for size in (64 << 10, 4096, 1500):  # the last is small enough for btrfs to keep it inline
            with pytest.raises(OSError) as caught:
                write_synced(root / f"more{size}", os.urandom(size))
            assert caught.value.errno == errno.ENOSPC
        assert (root / "mine").read_bytes() == b"m" * MIB


@pytest.mark.parametrize("mixed", [False, True])
def test_headroom_is_what_can_still_be_written(tmp_path: Path, mixed: bool) -> None:
    headroom = 16 * MIB
    path = full_image(tmp_path / "full", headroom, mixed=mixed)
    with mounted(path) as root:
        write_synced(root / "fits", os.urandom(headroom - 4 * MIB))
        fill(root, name="rest")
        used = sum(file.stat().st_size for file in root.glob("rest-[0-9]"))
        assert used <= 8 * MIB, "more room than was asked for"
