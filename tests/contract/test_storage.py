"""What every storage promises, held against each real one.

The rule: a case speaks of volumes, uuids and paths only; what is special to one storage is in its own file.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snap_upgrade.core.errors import NotFound, Refused, SnapUpgradeError, StorageError
from snap_upgrade.core.model import Change, FileChange, Volume
from snap_upgrade.system import kernel, mounts
from tests.contract.stores import STORES, Case

HOSTILE = (
    "-rf",
    "two words",
    "ünï-\U0001f600",
    "$(reboot);`x`'\"",
    "new\nline",
    "x" * 255,
    "a,subvolid=5",
    "back\\040slash",
    os.fsdecode(b"not-\xff-utf8"),
    " ",
)
GHOST = "deadbeef" * 4


@pytest.fixture(params=sorted(STORES))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    descriptors_before = set(os.listdir("/proc/self/fd"))
    with STORES[request.param](tmp_path) as made:
        yield made
    # Only what is ours: the machine may mount and unmount other things meanwhile.
    assert [mount for mount in mounts.mounts() if str(tmp_path) in mount.point] == [], "a mount leaked"
    assert set(os.listdir("/proc/self/fd")) == descriptors_before, "a descriptor leaked"


def be(name: str) -> str:
    return f".snap-upgrade/be/{name}"


def clone(case: Case, name: str = "next") -> Volume:
    case.storage.state_dir(create=True)
    return case.storage.clone(case.running.uuid, be(name))


def failure(number: int) -> pytest.RaisesExc[StorageError]:
    return pytest.raises(StorageError, check=lambda error: error.errno == number)


# -- state


def test_reading_makes_no_state(case: Case) -> None:
    with pytest.raises(NotFound):
        case.storage.state_dir()
    assert case.storage.at(".snap-upgrade") is None


def test_state_is_private_and_can_be_made_twice(case: Case) -> None:
    state = case.storage.state_dir(create=True)
    assert state.stat().st_mode & 0o7777 == 0o700
    assert (state / "version").read_text() == "1\n"
    (state / "journal" / "1").write_text("x")
    assert (case.again().state_dir(create=True) / "journal" / "1").read_text() == "x"
    assert {"be", "snap", "records", "journal", "history", "logs", "kept", "archives"} <= set(os.listdir(state))


def test_state_cut_short_is_completed(case: Case) -> None:
    state = case.storage.state_dir(create=True)
    (state / "version").unlink()
    (state / "journal").rmdir()
    state.chmod(0o755)
    again = case.again().state_dir(create=True)
    assert again.stat().st_mode & 0o7777 == 0o700
    assert (again / "version").read_text() == "1\n"
    assert (again / "journal").is_dir()


def test_state_is_outside_the_root(case: Case) -> None:
    case.storage.state_dir(create=True)
    assert ".snap-upgrade" not in os.listdir(case.root)
    assert case.storage.nested(case.running.uuid) == []


# -- snapshot and clone


def test_snapshot_is_read_only_and_remembers_its_source(case: Case) -> None:
    (case.root / "file").write_text("old")
    case.storage.state_dir(create=True)
    made = case.storage.snapshot(case.running.uuid, ".snap-upgrade/snap/1")
    assert (made.read_only, made.parent_uuid, made.path) == (True, case.running.uuid, ".snap-upgrade/snap/1")
    (case.root / "file").write_text("new")
    with case.storage.opened(made.uuid) as path:
        assert (path / "file").read_text() == "old"
        with pytest.raises(OSError, match="Read-only"):
            (path / "file").write_text("no")


def test_clone_of_a_snapshot_is_writable(case: Case) -> None:
    case.storage.state_dir(create=True)
    origin = case.storage.snapshot(case.running.uuid, ".snap-upgrade/snap/1")
    made = case.storage.clone(origin.uuid, be("a"))
    assert (made.read_only, made.parent_uuid) == (False, origin.uuid)
    with case.storage.opened(made.uuid) as path:
        (path / "file").write_text("yes")
    assert not (case.root / "file").exists()


def test_snapshot_and_clone_repeated_return_what_is_there(case: Case) -> None:
    first = clone(case)
    assert case.storage.clone(case.running.uuid, first.path).uuid == first.uuid
    snap = case.storage.snapshot(case.running.uuid, ".snap-upgrade/snap/1")
    assert case.again().snapshot(case.running.uuid, snap.path).uuid == snap.uuid


@pytest.mark.parametrize("what", ["other volume", "wrong flag", "directory", "file", "dangling link"])
def test_a_taken_place_is_never_returned_or_replaced(case: Case, what: str) -> None:
    made = clone(case)
    place = case.storage.state_dir() / "be" / "taken"
    source = case.running.uuid
    if what == "other volume":
        case.storage.clone(made.uuid, be("taken"))
    elif what == "wrong flag":
        case.storage.snapshot(source, be("taken"))
    elif what == "directory":
        place.mkdir()
    elif what == "file":
        place.write_text("mine")
    else:
        place.symlink_to("/nowhere")
    before = os.lstat(place)
    with pytest.raises(StorageError, match="taken by something else") as caught:
        case.storage.clone(source, be("taken"))
    assert caught.value.errno == errno.EEXIST
    assert os.lstat(place) == before


@pytest.mark.parametrize("call", ["snapshot", "clone", "rename", "activate", "mount", "opened", "nested", "exclusive"])
def test_an_unknown_volume_is_named(case: Case, call: str, tmp_path: Path) -> None:
    storage = case.storage
    with pytest.raises(StorageError, match=GHOST):
        match call:
            case "snapshot":
                storage.snapshot(GHOST, "x")
            case "clone":
                storage.clone(GHOST, "x")
            case "rename":
                storage.rename(GHOST, "x")
            case "activate":
                storage.activate(GHOST)
            case "mount":
                storage.mount(GHOST, tmp_path)
            case "opened":
                with storage.opened(GHOST):
                    pass
            case "nested":
                storage.nested(GHOST)
            case _:
                storage.exclusive_bytes(GHOST)


@pytest.mark.parametrize("path", ["/abs", "../up", "a/../b", "", ".", "..", "a//b", "a/", "nul\0"])
def test_a_path_that_leads_elsewhere_is_refused(case: Case, path: str) -> None:
    before = set(case.storage.volumes())
    with pytest.raises(SnapUpgradeError):
        case.storage.clone(case.running.uuid, path)
    assert set(case.storage.volumes()) == before


def test_a_symbolic_link_on_the_way_is_not_followed(case: Case) -> None:
    state = case.storage.state_dir(create=True)
    (state / "evil").symlink_to("be")
    with pytest.raises(StorageError):
        case.storage.clone(case.running.uuid, ".snap-upgrade/evil/x")
    assert os.listdir(state / "be") == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_go_all_the_way(case: Case, name: str, tmp_path: Path) -> None:
    made = clone(case, name)
    assert made.path == be(name)
    assert case.storage.volumes()[made.uuid].path == be(name)
    target = tmp_path / "at this\\040place"
    target.mkdir()
    case.storage.mount(made.uuid, target)
    assert case.storage.mounted_at(made.uuid) == [target]
    case.storage.unmount(target)
    case.storage.activate(made.uuid)
    assert case.storage.boots_next() == case.storage.volumes()[made.uuid]
    running = case.running
    assert running.path == be(name)
    case.storage.activate(running.uuid)
    case.storage.destroy(made.uuid)
    assert case.storage.at(be(name)) is None


def test_a_name_that_is_too_long_changes_nothing(case: Case) -> None:
    case.storage.state_dir(create=True)
    with failure(errno.ENAMETOOLONG):
        case.storage.clone(case.running.uuid, be("x" * 256))


# -- nested


def _nest(case: Case, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        kernel.create_subvolume(fd, os.fsencode(path.name))
    finally:
        os.close(fd)


def test_nested_volumes_are_listed_deepest_first_and_not_cloned(case: Case) -> None:
    _nest(case, case.root / "var/lib/docker")
    _nest(case, case.root / "var/lib/docker/layer 1")
    (case.root / "var/lib/docker/data").write_text("precious")
    inside = [volume.path.removeprefix(case.running.path) for volume in case.storage.nested(case.running.uuid)]
    assert inside == ["/var/lib/docker/layer 1", "/var/lib/docker"]
    made = clone(case)
    assert case.storage.nested(made.uuid) == []
    with case.storage.opened(made.uuid) as path:
        assert os.listdir(path / "var/lib/docker") == []


def test_a_volume_with_others_inside_is_not_destroyed(case: Case) -> None:
    made = clone(case)
    with case.storage.opened(made.uuid) as path:
        _nest(case, path / "inner")
    with pytest.raises(StorageError, match="inner") as caught:
        case.storage.destroy(made.uuid)
    assert caught.value.errno == errno.ENOTEMPTY
    assert case.storage.at(made.path) is not None
    for inner in case.storage.nested(made.uuid):
        case.storage.destroy(inner.uuid)
    case.storage.destroy(made.uuid)
    assert case.storage.at(made.path) is None


@pytest.mark.parametrize("read_only", [False, True])
def test_a_nested_volume_moves_to_its_place_in_the_clone(case: Case, read_only: bool) -> None:
    _nest(case, case.root / "docker")
    (case.root / "docker/data").write_text("precious")
    inner = case.storage.at(f"{case.running.path}/docker")
    assert inner is not None
    if read_only:
        case.storage.state_dir(create=True)
        frozen = case.storage.snapshot(inner.uuid, f"{case.running.path}/frozen")
        case.storage.destroy(inner.uuid)
        case.storage.rename(frozen.uuid, f"{case.running.path}/docker")
        inner = frozen
    made = clone(case)
    case.storage.rename(inner.uuid, f"{made.path}/docker")
    with case.storage.opened(made.uuid) as path:
        assert (path / "docker/data").read_text() == "precious"
    moved = case.storage.at(f"{made.path}/docker")
    assert moved is not None
    assert (moved.uuid, moved.read_only) == (inner.uuid, read_only)


# -- destroy


def test_destroy_twice_is_fine_and_space_is_pending_or_back(case: Case) -> None:
    made = clone(case)
    case.storage.destroy(made.uuid)
    assert set(case.storage.pending()) <= {made.ident}
    case.storage.destroy(made.uuid)
    assert made.uuid not in case.storage.volumes()


def test_what_runs_boots_or_is_mounted_is_not_destroyed(case: Case, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="it is the running root"):
        case.storage.destroy(case.running.uuid)
    made = clone(case)
    case.storage.mount(made.uuid, tmp_path)
    try:
        with failure(errno.EBUSY):
            case.storage.destroy(made.uuid)
    finally:
        case.storage.unmount(tmp_path)
    case.storage.activate(made.uuid)
    with failure(errno.EBUSY):
        case.storage.destroy(case.running.uuid)
    with failure(errno.EBUSY):
        case.storage.destroy(made.uuid)
    assert {made.uuid, case.running.uuid} <= set(case.storage.volumes())


def test_what_is_mounted_in_another_namespace_is_not_destroyed(case: Case, tmp_path: Path) -> None:
    made = clone(case)
    ready, go_on = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            mounts.enter_private_namespace()
            case.storage.mount(made.uuid, tmp_path)
            os.write(ready[1], b"x")
            os.read(go_on[0], 1)
            status = 0
        finally:
            os._exit(status)
    try:
        assert os.read(ready[0], 1) == b"x"
        assert case.storage.mounted_at(made.uuid) == []
        with failure(errno.EBUSY):
            case.storage.destroy(made.uuid)
    finally:
        os.write(go_on[1], b"x")
        assert os.waitpid(pid, 0)[1] == 0
        for fd in (*ready, *go_on):
            os.close(fd)
    case.storage.destroy(made.uuid)


# -- rename, exchange, activate


def test_rename_moves_and_never_overwrites(case: Case) -> None:
    made, other = clone(case, "a"), clone(case, "b")
    with failure(errno.EEXIST):
        case.storage.rename(made.uuid, other.path)
    with failure(errno.ENOENT):
        case.storage.rename(made.uuid, ".snap-upgrade/nowhere/a")
    case.storage.rename(made.uuid, be("c"))
    case.storage.rename(made.uuid, be("c"))
    assert case.storage.at(be("a")) is None
    there = case.storage.at(be("c"))
    assert there is not None
    assert there.uuid == made.uuid


def test_exchange_swaps_under_a_running_reader(case: Case) -> None:
    (case.root / "which").write_text("old")
    made = clone(case)
    with case.storage.opened(made.uuid) as path:
        (path / "which").write_text("new")
    place, running = case.running.path, case.running.uuid
    seen: set[str] = set()
    missing: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            there = case.storage.at(place)
            seen.add("nothing" if there is None else there.uuid)
            missing.update({running, made.uuid} - set(case.storage.volumes()))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            case.storage.exchange(running, made.uuid)
    finally:
        stop.set()
        reader.join()
    assert seen <= {running, made.uuid}
    assert missing == set()
    assert (case.root / "which").read_text() == "old"
    case.storage.exchange(running, made.uuid)
    with case.storage.opened(made.uuid) as path:
        assert (path / "which").read_text() == "new"
    now = case.storage.at(place)
    assert now is not None
    assert now.uuid == made.uuid


def test_activate_is_read_back_and_can_be_repeated_and_taken_back(case: Case) -> None:
    made, running = clone(case), case.running
    for _ in range(2):
        case.storage.activate(made.uuid)
        after = case.again().boots_next()
        assert after is not None
        assert after.uuid == made.uuid
    assert case.running.uuid == running.uuid
    case.storage.activate(running.uuid)
    back = case.storage.boots_next()
    assert back is not None
    assert back.uuid == running.uuid


def test_a_snapshot_is_not_activated(case: Case) -> None:
    case.storage.state_dir(create=True)
    snap = case.storage.snapshot(case.running.uuid, ".snap-upgrade/snap/1")
    with pytest.raises(Refused, match="read-only"):
        case.storage.activate(snap.uuid)
    assert case.storage.boots_next() == case.running


# -- mounts


def test_mount_and_unmount_can_be_repeated(case: Case, tmp_path: Path) -> None:
    made = clone(case)
    for _ in range(2):
        case.storage.mount(made.uuid, tmp_path, read_only=True)
    assert case.storage.mounted_at(made.uuid) == [tmp_path]
    with pytest.raises(OSError, match="Read-only"):
        (tmp_path / "x").write_text("")
    with failure(errno.EBUSY):
        case.storage.mount(case.running.uuid, tmp_path)
    assert sum(mount.point == str(tmp_path) for mount in mounts.mounts()) == 1
    with os.scandir(tmp_path), failure(errno.EBUSY):
        case.storage.unmount(tmp_path)
    for _ in range(2):
        case.storage.unmount(tmp_path)
    assert case.storage.mounted_at(made.uuid) == []


def test_what_is_not_ours_is_not_unmounted(case: Case, tmp_path: Path) -> None:
    kernel.mount("none", str(tmp_path), "tmpfs")
    try:
        with failure(errno.EINVAL):
            case.storage.unmount(tmp_path)
    finally:
        kernel.umount2(str(tmp_path))


def test_opened_is_seen_by_nobody_and_ends_with_the_block(case: Case) -> None:
    made = clone(case)
    with case.storage.opened(made.uuid) as path:
        assert os.listdir(path) == ["etc"]
        assert [mount.point for mount in mounts.mounts() if mount.root == f"/{made.path}"] == []
        case.storage.destroy(made.uuid)  # which no mount that anybody sees would allow
    assert not path.exists()


# -- space


def test_space_counts_what_is_written(case: Case) -> None:
    before = case.storage.space()
    (case.root / "big").write_bytes(os.urandom(32 << 20))
    case.storage.sync()
    after = case.storage.space()
    assert before.total == after.total
    assert before.available - after.available >= 31 << 20
    assert 0 < after.available < after.total
    assert case.storage.exclusive_bytes(case.running.uuid) is None


def test_a_full_medium_says_so_and_still_lists_and_destroys(case: Case) -> None:
    made = clone(case)
    case.fill()
    before = set(case.storage.volumes())
    with pytest.raises(StorageError) as caught:
        for number in range(5000):
            case.storage.clone(case.running.uuid, be(str(number)))
    assert caught.value.errno == errno.ENOSPC
    assert "prune" in caught.value.hint
    assert before <= set(case.storage.volumes())
    assert case.storage.boots_next() == case.running
    assert case.storage.space().available < 16 << 20
    case.storage.destroy(made.uuid)
    assert made.uuid not in case.storage.volumes()


def test_a_read_only_medium_is_refused_and_stays_read_only(case: Case) -> None:
    made = clone(case)
    case.read_only()
    storage = case.again()
    assert "read-only" in storage.layout().refusal
    assert storage.volumes()[made.uuid].path == made.path
    assert storage.boots_next() == storage.layout().running
    calls = (
        lambda: storage.clone(made.uuid, be("x")),
        lambda: storage.destroy(made.uuid),
        lambda: storage.rename(made.uuid, be("x")),
        lambda: storage.exchange(made.uuid, storage.layout().running.uuid),
    )
    for call in calls:
        with failure(errno.EROFS):
            call()
    with pytest.raises(Refused, match="read-only"):
        storage.activate(made.uuid)
    with storage.opened(made.uuid) as path, pytest.raises(OSError, match="Read-only"):
        (path / "x").write_text("")
    with pytest.raises(OSError, match="Read-only"):
        (case.root / "x").write_text("")


# -- differences


def _changes(case: Case, old: str, new: str) -> set[tuple[str, str]]:
    found = list(case.storage.changed_files(old, new))
    assert found == sorted(found, key=lambda change: change.path)
    return {(change.change.value, change.path) for change in found}


def test_changed_files_are_exact(case: Case) -> None:
    root = case.root
    names = ("same", "data", "mode", "owner", "attr", "gone", "replaced", "alike", "moved", "linked", "touched", "type")
    for name in names:
        (root / name).write_text(name * 2000)
    (root / "dir/below/deep").mkdir(parents=True)
    (root / "dir/below/deep/file").write_text("x")
    (root / "dir/other").write_text("x")
    (root / "rm/sub").mkdir(parents=True)
    (root / "rm/sub/file").write_text("x")
    os.symlink("old", root / "link")
    made = clone(case)
    with case.storage.opened(made.uuid) as path:
        with open(path / "data", "r+") as file:
            file.write("DATA")
        (path / "mode").chmod(0o600)
        os.chown(path / "owner", 7, 7)
        os.setxattr(path / "attr", "user.x", b"1")
        (path / "gone").unlink()
        for name, text in (("replaced", "other"), ("alike", "alike" * 2000)):
            (path / "new").write_text(text)
            (path / "new").rename(path / name)
        (path / "moved").rename(path / "dir/moved here")
        os.link(path / "linked", path / "linked too")
        os.utime(path / "touched", (1, 1))
        (path / "type").unlink()
        (path / "type").mkdir()
        (path / "dir/below").rename(path / "dir/above")
        (path / "dir/above/deep/new").write_text("")
        (path / "rm/sub/file").unlink()
        (path / "rm/sub").rmdir()
        (path / "rm").rmdir()
        (path / "link").unlink()
        os.symlink("new", path / "link")
        (path / "added\n\xe9").write_text("")
    expected = {
        ("M", "/data"), ("M", "/mode"), ("M", "/owner"), ("M", "/attr"), ("-", "/gone"), ("M", "/replaced"),
        ("-", "/moved"), ("+", "/dir/moved here"), ("+", "/linked too"), ("M", "/type"),
        ("-", "/dir/below"), ("-", "/dir/below/deep"), ("-", "/dir/below/deep/file"),
        ("+", "/dir/above"), ("+", "/dir/above/deep"), ("+", "/dir/above/deep/file"), ("+", "/dir/above/deep/new"),
        ("-", "/rm"), ("-", "/rm/sub"), ("-", "/rm/sub/file"), ("M", "/link"), ("+", "/added\n\xe9"),
    }  # fmt: skip
    assert _changes(case, case.running.uuid, made.uuid) == expected
    opposite = {"+": "-", "-": "+", "M": "M"}
    assert _changes(case, made.uuid, case.running.uuid) == {(opposite[sign], path) for sign, path in expected}


def test_a_comparison_leaves_nothing_behind(case: Case) -> None:
    made = clone(case)
    before = set(case.storage.volumes())
    assert _changes(case, made.uuid, made.uuid) == set()
    assert _changes(case, case.running.uuid, made.uuid) == set()
    assert set(case.storage.volumes()) == before


def test_two_thousand_files(case: Case) -> None:
    for number in range(2000):
        (case.root / f"f{number}").write_text(str(number))
    made = clone(case)
    with case.storage.opened(made.uuid) as path:
        for number in range(0, 2000, 2):
            (path / f"f{number}").unlink()
    found = list(case.storage.changed_files(case.running.uuid, made.uuid))
    assert set(found) == {FileChange(Change.REMOVED, f"/f{number}") for number in range(0, 2000, 2)}
