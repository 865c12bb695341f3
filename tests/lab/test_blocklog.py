"""The power cut harness itself: it must find a missing fsync, and must not blame code that has it.

The rule: every property is tested on real btrfs, with the workload that breaks it next to the one that keeps it.
"""

import ctypes
import fcntl
import filecmp
import hashlib
import os
import select
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import blockdev
from tests.lab.blockdev import StillHeld, mounted_device, reflink
from tests.lab.blocklog import (
    MODELS,
    BlockLog,
    Cut,
    LoggedDevice,
    Model,
    Replay,
    check,
    cuts,
    make_btrfs,
    materialise,
    mounted,
    reflink_scratch,
)
from tests.lab.fuseserver import DISCARD, FLUSH, WRITE
from tests.lab.served import ServerGone

MIB = 1 << 20
_START_SYNC, _WAIT_SYNC = 0x80089418, 0x40089416  # ioctl-btrfs: commit without writing out file data first


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    with reflink_scratch(tmp_path) as root:
        yield root


@pytest.fixture
def image(scratch: Path) -> Path:
    path = scratch / "image"
    with open(path, "xb") as file:
        file.truncate(512 * MIB)
    make_btrfs(path)
    return path


def version(number: int) -> bytes:
    """One megabyte that says which version it is in every part, and does not compress."""
    return hashlib.shake_256(b"%d" % number).digest(MIB)


VERSIONS = {hashlib.sha256(version(n)).digest(): n for n in range(9)}


def identify(path: Path) -> int | str:
    """Return the version in *path*, or what else is there."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return "missing"
    return VERSIONS.get(hashlib.sha256(data).digest(), "empty" if not data.strip(b"\0") else "torn")


def replace_durably(target: Path, data: bytes) -> None:
    temporary = target.with_suffix(".new")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(target)
    folder = os.open(target.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def replace_carelessly(target: Path, data: bytes) -> None:
    temporary = target.with_suffix(".new")
    temporary.write_bytes(data)
    temporary.rename(target)


def commit_without_data(root: Path) -> None:
    """End the transaction of btrfs as its timer would, which does not wait for the data of files."""
    fd = os.open(root, os.O_RDONLY)
    transid = fcntl.ioctl(fd, _START_SYNC, struct.pack("<Q", 0))
    fcntl.ioctl(fd, _WAIT_SYNC, transid)
    os.close(fd)


def record(image: Path, base: Path, log_dir: Path, work: Callable[[Path, Callable[[str], None]], None]) -> BlockLog:
    """Put version 0 on *image*, keep that as *base*, and log *work* on it."""
    with mounted(image) as root:
        replace_durably(root / "file", version(0))
    reflink(image, base)
    with LoggedDevice(image, log_dir) as dev, mounted_device(dev.path) as root:
        work(root, dev.mark)
    return BlockLog(log_dir)


def versions_seen(base: Path, log: BlockLog, scratch: Path, chosen: list[Cut]) -> list[tuple[Cut, int | str]]:
    seen = []
    with Replay(base, log, scratch) as replay:
        for cut in chosen:
            with replay.mounted(cut) as root:
                seen.append((cut, identify(root / "file")))
    return seen


def promised(cut: Cut) -> int:
    return int(cut.label or "0")


def test_durable_replacement_is_old_or_new_at_every_cut_and_new_once_it_said_so(scratch: Path, image: Path) -> None:
    def work(root: Path, mark: Callable[[str], None]) -> None:
        for number in range(1, 9):
            replace_durably(root / "file", version(number))
            mark(str(number))

    log = record(image, scratch / "base", scratch / "log", work)
    chosen = cuts(log, 200, seed=7)
    seen = versions_seen(scratch / "base", log, scratch, chosen)
    assert [(cut, found) for cut, found in seen if found not in (promised(cut), promised(cut) + 1)] == []
    assert len(seen) >= 150 and {cut.model for cut, _ in seen} == set(MODELS)
    assert {found for _, found in seen} == set(range(9)), "some versions were never cut at"


def test_missing_fsync_is_found_as_lost_data(scratch: Path, image: Path) -> None:
    def work(root: Path, mark: Callable[[str], None]) -> None:
        for number in range(1, 9):
            replace_carelessly(root / "file", version(number))
            mark(str(number))

    log = record(image, scratch / "base", scratch / "log", work)
    seen = versions_seen(scratch / "base", log, scratch, cuts(log, 60, seed=7))
    broken = {model for cut, found in seen for model in MODELS if cut.model == model and found != promised(cut)}
    assert broken == set(MODELS), "a rename without fsync kept its promise at every cut"


def test_missing_fsync_is_found_as_an_empty_file(scratch: Path, image: Path) -> None:
    def work(root: Path, mark: Callable[[str], None]) -> None:
        (root / "file").unlink()
        replace_carelessly(root / "file", version(1))
        commit_without_data(root)
        mark("1")

    log = record(image, scratch / "base", scratch / "log", work)
    seen = versions_seen(scratch / "base", log, scratch, cuts(log, 60, seed=7))
    assert "empty" in {found for _, found in seen}


def test_replaying_the_whole_log_gives_the_image_that_was_written(scratch: Path, image: Path) -> None:
    def work(root: Path, mark: Callable[[str], None]) -> None:
        for number in range(20):
            (root / f"{number}").write_bytes(version(number))
            (root / f"small{number}").write_bytes(b"inline")
        os.sync()
        for number in range(0, 20, 2):
            (root / f"{number}").unlink()
        commit_without_data(root)
        fd = os.open(root, os.O_RDONLY)
        fcntl.ioctl(fd, 0xC0185879, struct.pack("<QQQ", 0, (1 << 64) - 1, 0))  # FITRIM: discards arrive for certain
        os.close(fd)

    log = record(image, scratch / "base", scratch / "log", work)
    assert {WRITE, FLUSH, DISCARD} == {entry.kind for entry in log.entries}
    everything = Cut(len(log.entries), "prefix", 0, "")
    materialise(scratch / "base", log, everything, scratch / "again")
    assert filecmp.cmp(scratch / "again", image, shallow=False)
    assert not filecmp.cmp(scratch / "base", image, shallow=False)


def test_every_state_is_whole_for_btrfs_check(scratch: Path, image: Path) -> None:
    def work(root: Path, mark: Callable[[str], None]) -> None:
        for number in range(1, 4):
            replace_durably(root / "file", version(number))
            os.sync()

    log = record(image, scratch / "base", scratch / "log", work)
    with Replay(scratch / "base", log, scratch) as replay:
        for cut in cuts(log, 12, seed=3):
            with replay.state(cut) as state:
                check(state)


@pytest.fixture
def raw_log(scratch: Path) -> tuple[Path, BlockLog]:
    """Eight blocks: four written and flushed, then four written and not."""
    image, base = scratch / "raw", scratch / "raw-base"
    with open(image, "xb") as file:
        file.truncate(MIB)
    reflink(image, base)
    with LoggedDevice(image, scratch / "raw-log") as dev:
        fd = os.open(dev.path, os.O_RDWR)
        for number in range(8):
            os.pwrite(fd, bytes([number + 1]) * 8192, number * 65536)
            # One at a time, or the page cache writes them in an order of its own.
            blockdev.call("sync_file_range", fd, ctypes.c_longlong(0), ctypes.c_longlong(MIB), 7)
            if number == 3:
                os.fsync(fd)
                dev.mark("four")
        dev.mark("eight")
        os.close(fd)
    return base, BlockLog(scratch / "raw-log")


def blocks(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return [data[n * 65536 : n * 65536 + 8192] for n in range(8)]


def test_prefix_keeps_the_first_writes_and_no_other(scratch: Path, raw_log: tuple[Path, BlockLog]) -> None:
    base, log = raw_log
    for cut in cuts(log, 100, seed=1, models=["prefix"]):
        materialise(base, log, cut, scratch / "out")
        writes = sum(entry.kind == WRITE for entry in log.entries[: cut.index])
        assert blocks(scratch / "out") == [bytes([n + 1 if n < writes else 0]) * 8192 for n in range(8)]
        (scratch / "out").unlink()


def test_volatile_keeps_what_was_flushed_and_any_part_of_the_rest(
    scratch: Path, raw_log: tuple[Path, BlockLog]
) -> None:
    base, log = raw_log
    stop = log.index_of("eight")
    patterns = set()
    for seed in range(60):
        materialise(base, log, Cut(stop, "volatile", seed, ""), scratch / "out")
        found = blocks(scratch / "out")
        assert [part[0] for part in found[:4]] == [1, 2, 3, 4]
        patterns.add(tuple("x" if part[0] and part[-1] else "torn" if part[0] else "-" for part in found[4:]))
        (scratch / "out").unlink()
    assert ("-", "-", "-", "-") in patterns
    assert any(pattern[0] == "-" and "x" in pattern for pattern in patterns), "later writes never overtook earlier ones"
    assert any("torn" in pattern for pattern in patterns)


def test_labels_name_the_last_mark_before_the_cut(raw_log: tuple[Path, BlockLog]) -> None:
    log = raw_log[1]
    four, eight = log.index_of("four"), log.index_of("eight")
    labels = [log.label(index) for index in (four - 1, four, eight - 1, eight)]
    assert labels == ["", "four", "four", "eight"]
    assert log.flushed(four) == four, "the mark after fsync stands before its flush"
    assert log.flushed(eight) == four


@pytest.mark.parametrize("models", [("prefix",), ("volatile",), MODELS])
def test_cuts_are_as_many_as_asked_different_and_the_same_for_a_seed(
    raw_log: tuple[Path, BlockLog], models: tuple[Model, ...]
) -> None:
    log = raw_log[1]
    chosen = cuts(log, 8, seed=5, models=models)
    assert len(set(chosen)) == len(chosen) == 8
    assert chosen == cuts(log, 8, seed=5, models=models)
    assert {cut.model for cut in chosen} == set(models)
    if "prefix" in models:
        assert {0, len(log.entries)} <= {cut.index for cut in chosen if cut.model == "prefix"}
    if models != ("prefix",):
        assert chosen != cuts(log, 8, seed=6, models=models)


def test_a_replay_may_go_back(scratch: Path, raw_log: tuple[Path, BlockLog]) -> None:
    base, log = raw_log
    with Replay(base, log, scratch) as replay:
        for index in (len(log.entries), 2, 0):
            with replay.state(Cut(index, "prefix", 0, "")) as state:
                assert sum(part[0] != 0 for part in blocks(state)) == min(
                    8, sum(entry.kind == WRITE for entry in log.entries[:index])
                )


def test_a_record_cut_short_does_not_count(scratch: Path, raw_log: tuple[Path, BlockLog]) -> None:
    whole = raw_log[1].entries
    index = scratch / "raw-log" / "index"
    os.truncate(index, index.stat().st_size - 33)  # the last record is the mark "eight", the one before is cut
    assert BlockLog(scratch / "raw-log").entries == whole[:-1]


def leftovers(image: Path) -> list[str]:
    """Return loop devices, mounts and processes that have to do with *image*."""
    found = [str(p) for p in Path("/sys/block").glob("loop*/loop/backing_file") if p.read_text().strip() == str(image)]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(image) in process.read_bytes() and process.parent.name != str(os.getpid()):
                found.append(str(process))
        except FileNotFoundError:  # ended meanwhile
            continue
    return found


def test_nothing_is_left_after_an_error_in_the_test(scratch: Path, image: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="the test"),
        LoggedDevice(image, scratch / "log") as dev,
        mounted_device(dev.path) as root,
    ):
        (root / "file").write_bytes(version(1))
        raise RuntimeError("the test")
    assert leftovers(image) == [] and blockdev.mount_points(dev.path) == []
    with pytest.raises(RuntimeError, match="the test"), mounted(image) as root:
        raise RuntimeError("the test")
    assert leftovers(image) == [] and not root.exists()


def test_a_mount_that_the_test_forgot_is_taken_down_and_reported(scratch: Path, image: Path) -> None:
    target = scratch / "forgotten"
    target.mkdir()
    with pytest.raises(StillHeld, match="forgotten"), LoggedDevice(image, scratch / "log") as dev:
        blockdev.call("mount", os.fsencode(dev.path), os.fsencode(target), b"btrfs", 0, b"")
    assert leftovers(image) == [] and not os.path.ismount(target)


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(scratch: Path, image: Path) -> None:
    (scratch / "log").mkdir()
    (scratch / "log" / "index").touch()
    with pytest.raises(ServerGone, match="File exists"), LoggedDevice(image, scratch / "log"):
        pass
    assert leftovers(image) == []


def test_nothing_is_left_after_the_test_runner_is_killed(scratch: Path, image: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.lab.blocklog import LoggedDevice\n"
        "with LoggedDevice(Path(sys.argv[1]), Path(sys.argv[2])) as dev:\n"
        "    print(dev.server_pid, dev.path, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(image), str(scratch / "log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as runner:
        assert runner.stdout
        server, device = runner.stdout.readline().split()
        with open(os.pidfd_open(int(server))) as pidfd:
            runner.kill()
            assert select.select([pidfd], [], [], 60)[0], "the server outlives the test runner"
    assert leftovers(image) == []
    label = blockdev.loop_label(Path(device.decode()))
    assert not label or not str(image).endswith(label)
