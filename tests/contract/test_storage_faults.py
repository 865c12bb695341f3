"""A device that begins to fail: every call says so by StorageError and claims nothing.

The rule: the device is a real one whose writes fail. What is on it is looked at after a new mount, not believed.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from snap_upgrade.core.errors import StorageError
from snap_upgrade.core.model import Volume
from snap_upgrade.storage.btrfs import BtrfsStorage
from snap_upgrade.system import kernel
from tests.lab.blockdev import attached, mounted_device, sparse_copy
from tests.lab.blocklog import make_btrfs
from tests.lab.faults import FailingDevice

BE, SNAP = ".snap-upgrade/be/a", ".snap-upgrade/snap/1"


@dataclass
class World:
    """A root in ``@`` with a snapshot and a clone of it, all committed."""

    storage: BtrfsStorage
    root: Path
    running: Volume
    snapshot: Volume
    clone: Volume


def image(tmp: Path) -> Path:
    path = tmp / "image"
    with open(path, "xb") as file:
        file.truncate(256 << 20)
    make_btrfs(path)
    return path


@contextmanager
def rooted(device: Path, flags: str = "rootflags=subvol=@") -> Iterator[tuple[BtrfsStorage, Path]]:
    """Mount ``@`` of *device*, made at the first use, and open it."""
    with mounted_device(device) as top:
        if not (top / "@").exists():
            fd = os.open(top, os.O_RDONLY)
            kernel.create_subvolume(fd, b"@")
            kernel.sync(fd)
            os.close(fd)
    with mounted_device(device, options="subvol=@") as root:
        storage = BtrfsStorage(root, kernel_line=f"root={device} {flags}", fstab="", swaps="")
        try:
            yield storage, root
        finally:
            storage.close()


def furnish(storage: BtrfsStorage, root: Path) -> World:
    storage.state_dir(create=True)
    running = storage.layout().running
    snapshot = storage.snapshot(running.uuid, SNAP)
    clone = storage.clone(snapshot.uuid, BE)
    storage.sync()
    return World(storage, root, running, snapshot, clone)


def places(volumes: dict[str, Volume]) -> dict[str, tuple[str, bool]]:
    return {volume.uuid: (volume.path, volume.read_only) for volume in volumes.values()}


CALLS = ("snapshot", "clone", "activate", "destroy", "rename", "rename read-only", "exchange")


def do(name: str, world: World) -> None:
    """Make the call *name* durable; those that the storage leaves to sync() with it."""
    storage = world.storage
    match name:
        case "snapshot":
            storage.snapshot(world.running.uuid, ".snap-upgrade/snap/2")
        case "clone":
            storage.clone(world.snapshot.uuid, ".snap-upgrade/be/b")
        case "activate":
            storage.activate(world.clone.uuid)
        case "destroy":
            storage.destroy(world.snapshot.uuid)
            storage.sync()
        case "rename":
            storage.rename(world.clone.uuid, ".snap-upgrade/be/b")
            storage.sync()
        case "rename read-only":
            storage.rename(world.snapshot.uuid, ".snap-upgrade/kept/b")
        case _:
            storage.exchange(world.clone.uuid, world.running.uuid)
            storage.sync()


@pytest.mark.parametrize("flags", ["rootflags=subvol=@", ""], ids=["exchange", "default"])
@pytest.mark.parametrize("name", CALLS)
def test_a_device_whose_writes_fail_is_named_and_nothing_is_claimed(tmp_path: Path, name: str, flags: str) -> None:
    with FailingDevice(image(tmp_path)) as device:
        with rooted(device.path, flags) as (storage, root):
            world = furnish(storage, root)
            before = storage.volumes()
            following = storage.boots_next()
            assert following is not None
            descriptors = set(os.listdir("/proc/self/fd"))
            device.fail_writes()
            with pytest.raises(StorageError) as caught:
                do(name, world)
            assert caught.value.errno in (errno.EIO, errno.EROFS)
            assert "cannot " in caught.value.message
            assert caught.value.hint
            if caught.value.errno == errno.EIO:
                assert "nothing was changed" not in caught.value.message
            assert set(os.listdir("/proc/self/fd")) == descriptors
            # And whatever is tried after that is refused, not half done.
            with pytest.raises(StorageError):
                storage.clone(world.running.uuid, ".snap-upgrade/be/later")
        device.heal()
        with rooted(device.path, flags) as (storage, _):
            assert places(storage.volumes()) == places(before)
            now = storage.boots_next()
            assert now is not None
            assert now.uuid == following.uuid


def write_back(path: Path, data: bytes) -> None:
    """Write *data* to a new file and have it sent to the device alone, without any metadata: as dpkg does, unsynced."""
    with open(path, "xb", buffering=0) as file:
        file.write(data)
        wait_write_wait = 7
        # Whether it arrived is for sync() to say.
        ctypes.CDLL(None).sync_file_range(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), wait_write_wait)


def test_content_that_the_device_refused_for_a_moment_is_said_by_the_next_sync(tmp_path: Path) -> None:
    with FailingDevice(image(tmp_path)) as device, rooted(device.path) as (storage, root):
        furnish(storage, root)
        device.fail_writes()
        write_back(root / "file", b"x" * 65536)
        device.heal()
        with pytest.raises(StorageError) as caught:
            storage.sync()
        assert caught.value.errno == errno.EIO
        storage.sync()  # said once; the file system itself goes on


@pytest.mark.parametrize("flags", ["rootflags=subvol=@", ""], ids=["exchange", "default"])
def test_state_and_activation_are_on_the_device_when_the_call_returns(tmp_path: Path, flags: str) -> None:
    """The image is copied right after each call: what btrfs still has in memory is not in it, as after a power cut."""
    path = image(tmp_path)
    with attached(path) as device, rooted(device, flags) as (storage, _):
        (storage.state_dir(create=True) / "journal").rmdir()
        storage.sync()
        storage.state_dir(create=True)  # the version is there already, only a folder is not
        sparse_copy(path, tmp_path / "state")
        clone = storage.clone(storage.layout().running.uuid, BE)
        storage.activate(clone.uuid)
        sparse_copy(path, tmp_path / "activated")
        storage.activate(storage.layout().running.uuid)
        sparse_copy(path, tmp_path / "back")
    with attached(tmp_path / "state") as device, rooted(device, flags) as (storage, _):
        assert (storage.state_dir() / "version").read_text() == "1\n"
        assert (storage.state_dir() / "journal").is_dir()
    for name, expected in (("activated", True), ("back", False)):
        with attached(tmp_path / name) as device, rooted(device, flags) as (storage, _):
            following = storage.boots_next()
            assert following is not None
            assert (following.uuid == clone.uuid) is expected
