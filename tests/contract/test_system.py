"""The system calls and mounts under the storage, each against the kernel itself.

The rule: a wrapper that asked for a little more or less than it says would go red here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snap_upgrade.system import kernel, mounts
from tests.contract.stores import Case, btrfs
from tests.contract.test_storage_corners import in_child
from tests.fuzz.targets_system import SEARCH

_SHARED = 1 << 20


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with btrfs(tmp_path) as made:
        yield made


def test_a_private_namespace_shows_nothing_and_lets_go_of_what_the_host_unmounts(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir()
    outer.mkdir()

    def points() -> list[str]:
        return [mount.point for mount in mounts.mounts()]

    def host() -> None:
        # A host on which mounts are shared, as systemd leaves them.
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("none", str(tmp_path), "tmpfs")
        kernel.mount("none", str(tmp_path), flags=_SHARED)
        inner.mkdir()
        outer.mkdir()
        kernel.mount("none", str(outer), "tmpfs")
        ready, go_on = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(go_on[1])  # or it would wait for itself when the host fails
                mounts.enter_private_namespace()
                kernel.mount("none", str(inner), "tmpfs")
                os.write(ready[1], b"x")
                os.read(go_on[0], 1)
                status = 0 if str(inner) in points() and str(outer) not in points() else 2
            finally:
                os._exit(status)
        assert os.read(ready[0], 1) == b"x"
        assert str(inner) not in points(), "our mount is seen by the host"
        kernel.umount2(str(outer))
        os.write(go_on[1], b"x")
        assert os.waitpid(pid, 0)[1] == 0, "what the host unmounted is still held"

    assert in_child(host) == 0


def test_a_link_to_a_mount_is_seen_through_but_not_unmounted(tmp_path: Path) -> None:
    place, link = tmp_path / "place", tmp_path / "link"
    place.mkdir()
    link.symlink_to(place)
    kernel.mount("none", str(place), "tmpfs")
    try:
        seen = mounts.mounted_on(link)
        assert seen is not None
        assert (seen.point, seen.fstype) == (str(place), "tmpfs")
        with pytest.raises(OSError, match="umount2"):
            mounts.detach(str(link))
        assert mounts.mounted_on(place) == seen
        assert mounts.mounted_on(tmp_path) is None
    finally:
        kernel.umount2(str(place))


def test_the_number_in_a_name_is_not_the_number_of_the_volume() -> None:
    line = "36 35 0:39 /a /mnt rw - btrfs /dev/x rw,subvolid=300,subvol=/a,subvolid=7\n"
    assert mounts.parse(line)[0].subvolume_id == 300
    assert mounts.parse(line.replace("300", "\u00b2"))[0].subvolume_id is None
    assert mounts.parse(line.replace("36 35", "36 \u00b2")) == []


def test_a_mount_is_nearest_by_whole_names() -> None:
    places = (("/", "a"), ("/mnt", "b"), ("/mnt", "c"))
    text = "".join(f"{n} 0 0:{n} / {at} rw - btrfs /dev/{name} rw\n" for n, (at, name) in enumerate(places))
    assert kernel.root_device(text, "/mnt2")[0] == "/dev/a"
    assert kernel.root_device(text, "/mnt/x")[0] == "/dev/c"


def test_only_what_fits_a_byte_is_an_escape() -> None:
    assert kernel.unescape("\\101\\777\\1018\\08") == "A\\777A8\\08"


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"nul\0x", b"x" * 256])
def test_a_name_that_is_none_makes_and_destroys_nothing(case: Case, name: bytes) -> None:
    fd = os.open(case.root, os.O_RDONLY)
    (case.root / "a").mkdir()
    try:
        reason = r"Invalid argument|File name too long"
        with pytest.raises(OSError, match=reason):
            kernel.create_subvolume(fd, name)
        with pytest.raises(OSError, match=reason):
            kernel.snapshot(fd, fd, name, True)
        with pytest.raises(OSError, match=reason):
            kernel.destroy_subvolume(fd, name)
        assert sorted(os.listdir(case.root)) == ["a", "etc"]
        assert os.listdir(case.root / "a") == []
    finally:
        os.close(fd)


def test_readers_share_a_lock_and_a_writer_has_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    held = [os.open(path, os.O_RDWR) for _ in range(3)]
    try:
        assert kernel.ofd_lock(held[0], shared=True)
        assert kernel.ofd_lock(held[1], shared=True)
        assert not kernel.ofd_lock(held[2])
        os.close(held.pop(0))
        os.close(held.pop(0))
        assert kernel.ofd_lock(held[0])
    finally:
        for fd in held:
            os.close(fd)


def test_a_number_alone_makes_no_subvolume(tmp_path: Path) -> None:
    kernel.mount("none", str(tmp_path), "tmpfs")
    try:
        found = None
        for number in range(2000):
            path = tmp_path / str(number)
            path.mkdir()
            if path.stat().st_ino == kernel.FIRST_FREE:
                found = path
                break
        assert found is not None
        fd = os.open(found, os.O_RDONLY)
        try:
            assert not kernel.is_subvolume(fd)
        finally:
            os.close(fd)
    finally:
        kernel.umount2(str(tmp_path))


def test_the_name_of_a_process_may_hold_anything() -> None:
    rest = b" ".join(b"%d" % number for number in range(4, 53))
    assert kernel.stat_fields(b"17 (a) Z 1 (b)) S " + rest) == (b"S", 22)
    with pytest.raises(OSError, match="not understood"):
        kernel.stat_fields(b"17 (a) S 1 2")


def test_a_process_of_which_only_the_status_is_left_has_ended() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        with pytest.raises(ProcessLookupError):
            kernel.process_start(pid)
    finally:
        os.waitpid(pid, 0)
    assert kernel.process_start(os.getpid()) > 0


def test_the_default_subvolume_is_read_where_it_was_never_set_and_where_it_was(case: Case) -> None:
    fd = os.open(case.root, os.O_RDONLY)
    try:
        assert kernel.get_default(fd) == kernel.TOP_LEVEL
        kernel.set_default(fd, case.running.ident)
        assert kernel.get_default(fd) == case.running.ident
    finally:
        os.close(fd)
    assert kernel.default_entry(b"") == 0


def test_an_answer_of_a_tree_search_cut_anywhere_is_never_taken_for_whole() -> None:
    whole = [(*item[:3], item[4]) for item in kernel.search_items(SEARCH)]
    assert whole == [(256, 132, 0, b"abc"), (257, 132, 1, b"")]
    for length in range(112, len(SEARCH)):
        with pytest.raises(OSError, match="ends early"):
            kernel.search_items(SEARCH[:length])
