"""What only btrfs can do or get wrong: default subvolume, top level, swap files, quota, descriptors of its mounts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snap_upgrade.core.errors import Refused, StorageError
from snap_upgrade.core.model import Method
from snap_upgrade.storage.btrfs import BtrfsStorage
from snap_upgrade.storage.btrfs_facts import space_from
from snap_upgrade.system import kernel, mounts
from tests.contract.stores import Case, btrfs
from tests.lab import blockdev


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with btrfs(tmp_path) as made:
        yield made


def with_line(case: Case, line: str, root: Path | None = None) -> BtrfsStorage:
    case.others.append(BtrfsStorage(root or case.root, kernel_line=line.format(**case.extra), fstab="", swaps=""))
    return case.others[-1]


@pytest.mark.parametrize("subvol", ["my root", "würzel", "a/b/root", "n" * 255])
def test_the_root_may_have_any_name(tmp_path: Path, subvol: str) -> None:
    with btrfs(tmp_path, subvol) as case:
        layout = case.storage.layout()
        assert (layout.method, layout.boot_path, layout.running.path) == (Method.EXCHANGE, subvol, subvol)
        case.storage.state_dir(create=True)
        made = case.storage.clone(layout.running.uuid, ".snap-upgrade/be/x")
        case.storage.activate(made.uuid)
        now = case.storage.at(subvol)
        assert now is not None
        assert now.uuid == made.uuid


def test_without_rootflags_the_default_subvolume_is_set(case: Case) -> None:
    storage = with_line(case, "root={device}")
    assert storage.layout().method is Method.SET_DEFAULT
    storage.state_dir(create=True)
    running = storage.layout().running
    made = storage.clone(running.uuid, ".snap-upgrade/be/x")
    before = storage.boots_next()
    assert before is not None
    assert before.ident == kernel.TOP_LEVEL
    for volume in (made, made, running):
        storage.activate(volume.uuid)
        after = storage.boots_next()
        assert after is not None
        assert (after.uuid, after.path) == (volume.uuid, volume.path)
    with blockdev.mounted_device(Path(case.extra["device"])) as plain:
        mount = mounts.mounted_on(plain)
        assert mount is not None
        assert mount.subvolume_id == running.ident
    storage.activate(made.uuid)
    with pytest.raises(StorageError, match="default"):
        storage.destroy(made.uuid)
    storage.close()


def test_the_top_level_as_root(case: Case) -> None:
    with blockdev.mounted_device(Path(case.extra["device"]), options="subvolid=5") as top:
        storage = with_line(case, "root={device}", top)
        running = storage.layout().running
        assert (running.ident, running.path) == (5, "")
        storage.state_dir(create=True)
        assert ".snap-upgrade" in os.listdir(top)
        made = storage.clone(running.uuid, ".snap-upgrade/be/x")
        storage.activate(made.uuid)
        storage.activate(running.uuid)
        with pytest.raises(StorageError, match="top level"):
            storage.exchange(running.uuid, made.uuid)
        storage.destroy(made.uuid)
        storage.close()


def test_a_fixed_number_is_refused_and_nothing_changes(case: Case) -> None:
    storage = with_line(case, "root={device} rootflags=subvolid=256")
    storage.state_dir(create=True)
    made = storage.clone(storage.layout().running.uuid, ".snap-upgrade/be/x")
    with pytest.raises(Refused, match="subvolid=256"):
        storage.activate(made.uuid)
    following = storage.boots_next()
    assert following is not None
    assert following.ident == 256
    storage.close()


def test_an_active_swap_file_is_said_up_front(case: Case) -> None:
    swap = case.root / "swap file"
    swap.touch()
    subprocess.run(["/usr/bin/chattr", "+C", str(swap)], check=True)
    swap.write_bytes(bytes(1 << 20))
    swap.chmod(0o600)
    subprocess.run(["/sbin/mkswap", "--quiet", str(swap)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["/sbin/swapon", str(swap)], check=True)
    try:
        storage = BtrfsStorage(case.root, kernel_line=f"root={case.extra['device']} rootflags=subvol=@")
        layout = storage.layout()
        assert layout.method is Method.NONE
        assert str(swap) in layout.refusal
        storage.state_dir(create=True)
        with pytest.raises(StorageError) as caught:
            storage.snapshot(layout.running.uuid, ".snap-upgrade/snap/1")
        assert caught.value.errno == errno.ETXTBSY
        storage.close()
    finally:
        subprocess.run(["/sbin/swapoff", str(swap)], check=True)
    assert case.storage.layout().method is Method.EXCHANGE


@pytest.mark.parametrize("path", ["usr", "etc", "var/lib/dpkg"])
def test_a_part_of_the_system_on_another_volume_is_refused(case: Case, path: str) -> None:
    target = case.root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rmdir()
    fd = os.open(target.parent, os.O_RDONLY)
    kernel.create_subvolume(fd, os.fsencode(target.name))
    os.close(fd)
    assert f"/{path}" in case.storage.layout().refusal


def test_a_root_that_is_no_btrfs_or_no_subvolume_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="not on btrfs"):
        BtrfsStorage(Path("/proc")).layout()
    (case.root / "sub").mkdir()
    storage = BtrfsStorage(case.root / "sub", kernel_line="", fstab="", swaps="")
    with pytest.raises(Refused, match="not a subvolume"):
        storage.layout()
    storage.close()


def test_an_overlay_is_told_as_the_live_medium_it_is(case: Case) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (case.root / name).mkdir()
    options = ",".join(f"{name}dir={case.root / name}" for name in ("lower", "upper", "work"))
    merged = case.root / "merged"
    subprocess.run(["/bin/mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
    try:
        with pytest.raises(Refused, match="is on overlay, not on btrfs") as caught:
            BtrfsStorage(merged).layout()
    finally:
        subprocess.run(["/bin/umount", str(merged)], check=True)
    assert "live medium" in caught.value.hint


def test_exclusive_size_only_with_quota(case: Case) -> None:
    (case.root / "big").write_bytes(os.urandom(4 << 20))
    case.storage.sync()
    assert case.storage.exclusive_bytes(case.running.uuid) is None
    subprocess.run(["/bin/btrfs", "quota", "enable", str(case.root)], check=True)
    subprocess.run(["/bin/btrfs", "quota", "rescan", "-w", str(case.root)], check=True, stdout=subprocess.DEVNULL)
    case.storage.sync()
    size = case.storage.exclusive_bytes(case.running.uuid)
    assert size is not None
    assert 4 << 20 <= size < 5 << 20


def test_left_over_passing_snapshots_of_dead_processes_are_swept(case: Case) -> None:
    case.storage.state_dir(create=True)
    running = case.running.uuid
    alive = f"{kernel.boot_id()}.1.{kernel.process_start(1)}.256"
    start = kernel.process_start(1)
    dead = (f"{kernel.boot_id()}.999999.1.256", f"other-boot.1.{start}.256", f"{kernel.boot_id()}.1.{start + 1}.256")
    for name in (*dead, alive, "somebody's"):
        case.storage.snapshot(running, f".snap-upgrade/diff/{name}")
    made = case.storage.clone(running, ".snap-upgrade/be/x")
    assert list(case.storage.changed_files(running, made.uuid)) == []
    assert set(os.listdir(case.storage.state_dir() / "diff")) == {alive, "somebody's"}


def test_a_new_entry_is_seen_through_a_descriptor_opened_before(case: Case) -> None:
    state = case.storage.state_dir(create=True)
    assert os.listdir(state / "snap") == []
    case.storage.snapshot(case.running.uuid, ".snap-upgrade/snap/1")
    assert os.listdir(state / "snap") == ["1"]


@pytest.mark.parametrize("text", ["", "garbage\n", "1 2 0:3 / / rw\n", "x x x x x x - x\n", "1 x 0:1 / / rw - a b c\n"])
def test_garbage_in_mountinfo_is_no_mount(text: str) -> None:
    assert mounts.parse(text) == []


def test_mountinfo_escapes_and_stacked_mounts() -> None:
    line = "36 35 0:39 /a\\040b /mnt/x\\134\\012y rw master:1 shared:2 - btrfs /dev/x rw,subvolid=300,subvol=/a,b\n"
    mount = mounts.parse(line)[0]
    assert (mount.root, mount.point, mount.subvolume_id) == ("/a b", "/mnt/x\\\ny", 300)
    two = "1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 /@ / rw - btrfs /dev/b rw,subvolid=256,subvol=/@\n"
    assert kernel.root_device(two) == ("/dev/b", "/@", "rw,subvolid=256,subvol=/@")
    with pytest.raises(OSError, match="ext4"):
        kernel.root_device("1 0 0:1 / / rw - ext4 /dev/a rw\n")


GIB = 1 << 30


@pytest.mark.parametrize(
    ("kinds", "devices", "says", "available"),
    [
        # single data, DUP metadata with much free: all that is unallocated counts
        ([(1, 8 * GIB, 2 * GIB), (36, GIB, 0)], [(100 * GIB, 10 * GIB)], 10**15, 96 * GIB),
        # the same with metadata nearly full: the next two chunks of 1 GiB are set aside
        ([(1, 8 * GIB, 2 * GIB), (36, GIB, GIB - 1)], [(100 * GIB, 10 * GIB)], 10**15, 94 * GIB),
        # RAID1: half
        ([(17, 8 * GIB, 2 * GIB), (20, 4 * GIB, 0)], [(50 * GIB, 12 * GIB)] * 2, 10**15, 44 * GIB),
        # half of it free, but the kernel keeps that half for itself
        (
            [(1, 8 * GIB, 2 * GIB), (36, GIB, GIB // 2), (1 << 49, GIB // 2, 0)],
            [(100 * GIB, 10 * GIB)],
            10**15,
            94 * GIB,
        ),
        # no chunk for metadata left
        ([(1, 8 * GIB, 2 * GIB), (36, GIB, GIB)], [(10 * GIB, 10 * GIB)], 10**15, 0),
        # Linux knows better
        ([(1, 8 * GIB, 2 * GIB), (36, GIB, 0)], [(100 * GIB, 10 * GIB)], GIB, GIB),
    ],
)
def test_space(kinds: list[tuple[int, int, int]], devices: list[tuple[int, int]], says: int, available: int) -> None:
    assert space_from(kinds, devices, says).available == available


def test_a_comparison_costs_what_changed_not_what_is_there(case: Case) -> None:
    """The kernel reads the blocks that differ: measured as bytes of the stream, which no clock disturbs."""
    for number in range(3000):
        (case.root / f"file-{number}").touch()
    case.storage.state_dir(create=True)
    old = case.storage.snapshot(case.running.uuid, ".snap-upgrade/snap/1")
    (case.root / "file-7").write_text("x")
    new = case.storage.snapshot(case.running.uuid, ".snap-upgrade/snap/2")
    out = os.memfd_create("stream")
    with case.storage.opened(new.uuid) as path:
        fd = os.open(path, os.O_RDONLY)
        kernel.send_names(fd, old.ident, out)
        os.close(fd)
    assert os.fstat(out).st_size < 2000
    os.close(out)


def test_reading_a_comparison_looks_at_what_changed_only(case: Case) -> None:
    """Every call of our own is counted: with a hundred times the files beside the changed one it makes no more."""
    case.storage.state_dir(create=True)
    counted = []
    for round_, files in enumerate((30, 3000)):
        for number in range(files):
            (case.root / f"file-{round_}-{number}").touch()
        old = case.storage.snapshot(case.running.uuid, f".snap-upgrade/snap/{round_}1")
        (case.root / "file-0-7").write_text(f"x{round_}")
        new = case.storage.snapshot(case.running.uuid, f".snap-upgrade/snap/{round_}2")
        calls: list[str] = []

        def count(_frame: object, event: str, _argument: object, calls: list[str] = calls) -> None:
            calls.append(event)

        sys.setprofile(count)
        try:
            found = list(case.storage.changed_files(old.uuid, new.uuid))
        finally:
            sys.setprofile(None)
        assert [one.path for one in found] == ["/file-0-7"]
        counted.append(len(calls))
    assert counted[1] < counted[0] * 1.5
