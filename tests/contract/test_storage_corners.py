"""Where one check stands between a user and a lost volume: each of these goes red when its check is taken out.

The rule: what comes in between is done for real, by another call at a named place; nothing is pretended.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import btrfsutil
import pytest

from snap_upgrade.core.errors import NeedsPerson, Refused, StorageError
from snap_upgrade.core.model import Volume
from snap_upgrade.storage import btrfs_facts, btrfs_tree
from snap_upgrade.storage.btrfs import BtrfsStorage
from snap_upgrade.system import failpoint, kernel, mounts
from tests.contract.stores import Case, btrfs

BE = ".snap-upgrade/be/a"


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with btrfs(tmp_path) as made:
        yield made


def clone(case: Case, path: str = BE) -> Volume:
    case.storage.state_dir(create=True)
    return case.storage.clone(case.running.uuid, path)


def in_child(work: Callable[[], None]) -> int:
    """Run *work* in a process of its own; return how it ended, as waitpid says it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def nest(folder: Path, name: str) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        kernel.create_subvolume(fd, os.fsencode(name))
    finally:
        os.close(fd)


# -- read back


def test_an_activation_that_somebody_undoes_meanwhile_is_not_called_done(case: Case) -> None:
    made, running = clone(case), case.running

    class Interfered(BtrfsStorage):
        def sync(self) -> None:
            super().sync()
            case.storage.exchange(made.uuid, running.uuid)

    storage = Interfered(case.root, kernel_line=f"root={case.extra['device']} rootflags=subvol=@", fstab="", swaps="")
    case.others.append(storage)
    with pytest.raises(NeedsPerson, match="@ is what would boot"):
        storage.activate(made.uuid)


def test_a_snapshot_that_somebody_moves_meanwhile_is_not_returned(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.storage.state_dir(create=True)
    real = kernel.snapshot

    def interfered(source: int, folder: int, name: bytes, read_only: bool) -> None:
        real(source, folder, name, read_only)
        os.rename(name, b"elsewhere", src_dir_fd=folder, dst_dir_fd=folder)

    monkeypatch.setattr(kernel, "snapshot", interfered)
    with pytest.raises(StorageError, match="is not there after it was made"):
        case.storage.snapshot(case.running.uuid, ".snap-upgrade/snap/1")


def test_a_move_that_somebody_undoes_meanwhile_is_not_called_done(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    made = clone(case)
    real = kernel.rename_noreplace

    def interfered(a: int, name_a: bytes, b: int, name_b: bytes) -> None:
        real(a, name_a, b, name_b)
        real(b, name_b, a, name_a)

    monkeypatch.setattr(kernel, "rename_noreplace", interfered)
    with pytest.raises(NeedsPerson, match="another volume is there"):
        case.storage.rename(made.uuid, ".snap-upgrade/be/b")


# -- the read-only flag


@pytest.mark.parametrize("point", ["noted", "writable", "moved", "given-back"])
def test_a_kill_while_a_read_only_volume_moves_costs_no_flag(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, point: str
) -> None:
    state = case.storage.state_dir(create=True)
    made = case.storage.snapshot(case.running.uuid, ".snap-upgrade/snap/1")
    (tmp_path / "marker").touch()

    def move() -> None:
        monkeypatch.setattr(failpoint, "MARKER", str(tmp_path / "marker"))
        monkeypatch.setenv(failpoint.VARIABLE, f"kill:storage.move.{point}#1")
        case.storage.rename(made.uuid, ".snap-upgrade/kept/x")

    assert os.WTERMSIG(in_child(move)) == signal.SIGKILL
    again = case.again()
    if point in ("writable", "moved"):
        assert not again.volumes()[made.uuid].read_only, "the kill came too late to prove anything"
    for _ in range(2):
        again.state_dir(create=True)
        assert again.volumes()[made.uuid].read_only
        assert os.listdir(state / "moving") == []
    again.rename(made.uuid, ".snap-upgrade/kept/x")
    assert again.volumes()[made.uuid].read_only


def test_a_killed_move_of_a_volume_that_is_gone_is_forgotten(case: Case) -> None:
    state = case.storage.state_dir(create=True)
    (state / "moving").mkdir()
    (state / "moving" / f"{kernel.boot_id()}.999999.1.4242").touch()
    alive = f"{kernel.boot_id()}.1.{kernel.process_start(1)}.4242"
    (state / "moving" / alive).touch()
    case.again().state_dir(create=True)
    assert os.listdir(state / "moving") == [alive]


def test_a_move_that_fails_gives_the_flag_back(case: Case) -> None:
    state = case.storage.state_dir(create=True)
    made = case.storage.snapshot(case.running.uuid, ".snap-upgrade/snap/1")
    (state / "kept" / "taken").write_text("mine")
    with pytest.raises(StorageError, match="nothing was changed"):
        case.storage.rename(made.uuid, ".snap-upgrade/kept/taken")
    assert case.storage.volumes()[made.uuid].read_only
    assert os.listdir(state / "moving") == []


def test_two_read_only_volumes_change_places_and_stay_so(case: Case) -> None:
    case.storage.state_dir(create=True)
    one = case.storage.snapshot(case.running.uuid, ".snap-upgrade/snap/1")
    two = case.storage.snapshot(case.running.uuid, ".snap-upgrade/kept/2")
    case.storage.exchange(one.uuid, two.uuid)
    now = case.storage.volumes()
    assert (now[one.uuid].path, now[one.uuid].read_only) == (two.path, True)
    assert (now[two.uuid].path, now[two.uuid].read_only) == (one.path, True)
    case.storage.exchange(one.uuid, one.uuid)
    assert case.storage.volumes() == now


# -- what is at a place


def test_a_link_or_a_directory_is_no_volume(case: Case) -> None:
    state = case.storage.state_dir(create=True)
    made = clone(case)
    (state / "be" / "link").symlink_to("a")
    assert case.storage.at(".snap-upgrade/be/link") is None
    assert case.storage.at(".snap-upgrade/be") is None
    with pytest.raises(StorageError) as caught:
        case.storage.rename(made.uuid, ".snap-upgrade/be/link")
    assert caught.value.errno == errno.EEXIST


def test_a_volume_without_a_uuid_goes_by_its_number(case: Case) -> None:
    storage = BtrfsStorage(case.root, kernel_line="", fstab="", swaps="")
    case.others.append(storage)
    found = storage._find(f"{kernel.TOP_LEVEL:032x}")
    assert found is not None
    assert found.ident == kernel.TOP_LEVEL
    fields = list(btrfsutil.subvolume_info(str(case.root)))
    fields[fields.index(bytes.fromhex(case.running.uuid))] = bytes(16)
    old = storage._volume(btrfsutil.SubvolumeInfo(fields), "old")
    assert old.uuid == f"{case.running.ident:032x}"


@pytest.mark.parametrize("what", ["directory", "file", "link", "somebody's volume"])
def test_a_state_that_is_not_ours_is_left_alone(case: Case, what: str) -> None:
    with case.storage.opened(case.storage.at("").uuid) as top:  # type: ignore[union-attr]
        place = top / ".snap-upgrade"
        if what == "directory":
            place.mkdir()
        elif what == "file":
            place.write_text("mine")
        elif what == "link":
            place.symlink_to("@")
        else:
            nest(top, ".snap-upgrade")
            os.chown(place, 1000, 1000)
        before = os.lstat(place)
        with pytest.raises(NeedsPerson, match="not ours"):
            case.storage.state_dir(create=True)
        assert os.lstat(place) == before


# -- what is in use


def test_the_top_level_is_never_destroyed(case: Case, tmp_path: Path) -> None:
    top = case.storage.at("")
    assert top is not None
    case.storage.mount(top.uuid, tmp_path)
    storage = BtrfsStorage(tmp_path, kernel_line=f"root={case.extra['device']}", fstab="", swaps="")
    case.others.append(storage)
    assert "the file system itself" in storage._in_use(top)
    with pytest.raises(StorageError, match="nothing was changed"):
        storage.destroy(top.uuid)
    case.storage.unmount(tmp_path)


def test_a_mount_of_another_file_system_is_another_mount(case: Case, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    made = clone(case)
    with btrfs(tmp_path / "second") as second:
        other = clone(second)
        assert other.ident == made.ident
        place = tmp_path / "place"
        place.mkdir()
        second.storage.mount(other.uuid, place)
        try:
            assert case.storage.mounted_at(made.uuid) == []
            case.storage.destroy(made.uuid)
        finally:
            second.storage.unmount(place)


def test_a_part_that_is_mounted_is_not_the_whole(case: Case, tmp_path: Path) -> None:
    made = clone(case)
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    case.storage.mount(made.uuid, whole)
    kernel.mount(str(whole / "etc"), str(part), flags=kernel.MS_BIND)
    try:
        assert case.storage.mounted_at(made.uuid) == [whole]
        case.storage.unmount(whole)
        assert case.storage.mounted_at(made.uuid) == []
        with pytest.raises(StorageError, match="mounted at"):
            case.storage.destroy(made.uuid)
    finally:
        kernel.umount2(str(part))


def test_a_root_that_was_deleted_under_us_needs_a_person(case: Case, tmp_path: Path) -> None:
    made = clone(case)
    case.storage.mount(made.uuid, tmp_path)
    storage = BtrfsStorage(tmp_path, kernel_line="", fstab="", swaps="")
    case.others.append(storage)
    assert storage.layout().running == made
    fd = os.open(case.storage.state_dir() / "be", os.O_RDONLY)
    kernel.destroy_subvolume(fd, b"a")
    os.close(fd)
    try:
        with pytest.raises(NeedsPerson, match="deleted"):
            storage.layout()
    finally:
        kernel.umount2(str(tmp_path))


# -- what the machine says


def test_a_path_that_holds_another_number_does_not_boot(case: Case) -> None:
    line = f"root={case.extra['device']} rootflags=subvol=@,subvolid=9999"
    case.others.append(BtrfsStorage(case.root, kernel_line=line, fstab="", swaps=""))
    assert case.others[-1].boots_next() is None


def test_a_device_node_that_is_another_disk_is_not_believed(case: Case, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with btrfs(tmp_path / "second") as second:

        def work() -> None:
            mounts.enter_private_namespace()
            kernel.mount(second.extra["device"], case.extra["device"], flags=kernel.MS_BIND)
            before = os.listdir("/proc/self/fd")
            with pytest.raises(StorageError, match="another file system"):
                BtrfsStorage(case.root, kernel_line="", fstab="", swaps="").volumes()
            assert os.listdir("/proc/self/fd") == before

        assert in_child(work) == 0


def test_a_mount_leaves_a_read_only_file_system_so(case: Case, tmp_path: Path) -> None:
    made = clone(case)
    case.read_only()
    storage = case.again()
    storage.mount(made.uuid, tmp_path)
    try:
        for place in (tmp_path, case.root):
            with pytest.raises(OSError, match="Read-only"):
                (place / "x").write_text("")
    finally:
        storage.unmount(tmp_path)


def test_only_swap_files_of_this_volume_count(case: Case, tmp_path: Path) -> None:
    inside, outside = case.root / "a\u00a0b", tmp_path / "swap"
    inside.touch()
    outside.touch()
    files = "".join(f"{path} file\t\t1 0 -2\n" for path in (inside, outside, "/gone"))
    text = f"Filename Type\n{files}{inside} partition\t1\n"
    assert btrfs_facts.swap_files(text, str(case.root)) == (str(inside),)


def test_an_absolute_link_in_another_root_is_not_looked_up_on_the_host(case: Case) -> None:
    (case.root / "usr").symlink_to("/proc")
    assert case.storage.layout().refusal == ""


def test_names_of_udev_and_of_logical_volumes(tmp_path: Path) -> None:
    device = tmp_path / "dm-0"
    device.touch()
    for name in ("my\\x20disk", "my--group-root--volume"):
        (tmp_path / name).symlink_to(device)
    real = {str(device)}
    assert "LABEL=my disk" in btrfs_facts._links(str(tmp_path), "LABEL", real)
    assert "/dev/my-group/root-volume" in btrfs_facts._logical_volumes(real, str(tmp_path))


@pytest.mark.parametrize(("flags", "exclusive"), [(0, None), (1, 7), (1 | 2, None), (1 | 4, None)])
def test_quota_counts_only_while_it_is_consistent(flags: int, exclusive: int | None) -> None:
    number = int.to_bytes
    state = bytes(16) + number(flags, 8, "little")
    assert btrfs_facts.quota_says(state, bytes(24) + number(7, 8, "little")) == exclusive


# -- differences


def test_a_moved_directory_is_listed_but_not_what_it_only_points_at(case: Case) -> None:
    made = clone(case)
    with case.storage.opened(made.uuid) as path:
        (path / "d").mkdir()
        (path / "d/link").symlink_to("..")
        nest(path / "d", "inner")
        (path / "d/inner/file").write_text("x")
        os.mknod(path / "node", 0o20600, os.makedev(1, 3))
        fd = os.open(path, os.O_RDONLY)
        kernel.set_read_only(fd, True)
        os.close(fd)
    new = case.storage.clone(made.uuid, ".snap-upgrade/be/b")
    with case.storage.opened(new.uuid) as path:
        (path / "d").rename(path / "e")
        (path / "node").unlink()
        os.mknod(path / "node", 0o20600, os.makedev(1, 5))
    found = {f"{change.change.value}{change.path}" for change in case.storage.changed_files(made.uuid, new.uuid)}
    assert found == {"-/d", "-/d/link", "-/d/inner", "+/e", "+/e/link", "+/e/inner", "M/node"}


def test_a_directory_is_not_a_root_to_go_back_to(case: Case) -> None:
    (case.root / "sub").mkdir()
    case.others.append(BtrfsStorage(case.root / "sub", kernel_line="", fstab="", swaps=""))
    with pytest.raises(Refused, match="not a subvolume"):
        case.others[-1].layout()


# -- volumes whose path Linux does not tell


def bury(folder: Path) -> None:
    """Make a volume with another inside, in so many folders that the path to it is longer than a page."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    kernel.create_subvolume(fd, b"deep")
    below = os.open("deep", os.O_RDONLY, dir_fd=fd)
    kernel.create_subvolume(below, b"inner")
    os.close(fd)
    os.close(below)


def test_a_volume_whose_path_cannot_be_told_is_listed_and_takes_no_other_along(case: Case) -> None:
    made, running = clone(case), case.running
    (case.root / "home").mkdir()
    nest(case.root / "home", "other")
    bury(case.root / "home")
    found = case.storage.volumes()
    assert {made.uuid, running.uuid} < set(found)
    untold = [volume for volume in found.values() if volume.path == f"{running.path}/?//{volume.ident}"]
    assert len(untold) == 2
    inside = case.storage.nested(running.uuid)
    assert [one.path for one in inside if one not in untold] == [f"{running.path}/home/other"]
    assert {one.ident for one in inside} > {one.ident for one in untold}
    inner, deep = sorted(untold, key=lambda volume: -volume.ident)
    assert inside.index(inner) < inside.index(deep)
    assert case.storage.nested(deep.uuid) == [inner]
    assert case.storage.exclusive_bytes(deep.uuid) is None  # it is found by its uuid
    with pytest.raises(StorageError, match="is not a path"):
        case.storage.at(deep.path)
    with pytest.raises(StorageError, match="other volumes are inside"):
        case.storage.destroy(deep.uuid)


def test_a_volume_whose_path_cannot_be_told_can_be_moved_to_one_that_can(case: Case) -> None:
    case.storage.state_dir(create=True)
    bury(case.root)
    deep = min((one for one in case.storage.nested(case.running.uuid)), key=lambda volume: volume.ident)
    case.storage.rename(deep.uuid, ".snap-upgrade/kept/deep")
    assert [one.path for one in case.storage.nested(deep.uuid)] == [".snap-upgrade/kept/deep/inner"]
    assert case.storage.nested(case.running.uuid) == []


def test_what_anybody_named_cannot_speak_through_a_message(case: Case, tmp_path: Path) -> None:
    made = clone(case)
    with case.storage.opened(made.uuid) as root:
        nest(root, "x\nsnap-upgrade: all is well\x1b]0;")
    inner = case.storage.nested(made.uuid)[0]
    assert inner.path.endswith("/x\nsnap-upgrade: all is well\x1b]0;")
    taken = f"{BE}/x\ny"
    with case.storage.opened(made.uuid) as root:
        (root / "x\ny").touch()
    for call in (
        lambda: case.storage.destroy(made.uuid),
        lambda: case.storage.rename(made.uuid, f"{inner.path}/b/c"),
        lambda: case.storage.rename(inner.uuid, taken),
        lambda: case.storage.snapshot(inner.uuid, taken),
        lambda: case.storage.mount(inner.uuid, tmp_path / "nowhere"),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.message.isprintable()


def test_the_list_says_of_each_volume_what_the_library_says(case: Case) -> None:
    snapshot = case.storage.snapshot(clone(case).uuid, ".snap-upgrade/snap/s")
    (case.root / "a/b").mkdir(parents=True)
    nest(case.root / "a/b", "one")
    nest(case.root / "a/b/one", "two")
    with case.storage.opened(case.storage.at("").uuid) as top:  # type: ignore[union-attr]
        said = {info.id: (path, info) for path, info in btrfsutil.SubvolumeIterator(top, top=5, info=True)}
        fd = os.open(top, os.O_RDONLY)
    listed = btrfs_tree.volumes(fd)
    os.close(fd)
    assert listed is not None
    assert snapshot.ident in listed and len(listed) >= 6
    assert {number: path for number, (_, path) in listed.items()} == {number: one[0] for number, one in said.items()}
    for number, (info, _) in listed.items():
        for field in info._fields:
            ours, theirs = getattr(info, field), getattr(said[number][1], field)
            assert ours == pytest.approx(theirs) if isinstance(ours, float) else ours == theirs, field


# -- while others move


def test_volumes_that_change_places_all_the_time_are_always_found(case: Case) -> None:
    """A process beside us exchanges without a pause; each of our looks falls somewhere into it."""
    made, running = clone(case), case.running
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writing)
            os.set_blocking(reading, False)
            with case.storage.opened(case.storage.at("").uuid) as top:  # type: ignore[union-attr]
                a, b = os.open(top, os.O_RDONLY), os.open(top / ".snap-upgrade/be", os.O_RDONLY)
                while True:
                    kernel.exchange(a, b"@", b, b"a")
                    try:
                        if not os.read(reading, 1):
                            break  # the test has seen enough, or is gone
                    except BlockingIOError:
                        continue
        finally:
            os._exit(0)
    os.close(reading)
    lost = []
    for number in range(3000):
        if {made.uuid, running.uuid} - set(case.storage.volumes()):
            lost.append(f"the list {number}")
        for uuid in (made.uuid, running.uuid):
            try:
                assert case.storage.nested(uuid) == []
            except StorageError as error:
                lost.append(f"{number}: {error.message}")
    os.close(writing)
    os.waitpid(pid, 0)
    assert lost == []
