"""Many nested volumes that follow the root: at one cost, and taken back or finished wherever a call fails.

The one rule: what is counted are the calls themselves, of the real file system; none of them is replaced.
"""

import errno
import os
from pathlib import Path

import pytest

from snap_upgrade.storage.btrfs import BtrfsStorage
from tests.crash.driver import MANY
from tests.crash.test_kill import NEXT_BOOT, Disks, followed
from tests.crash.world import started


def durable_calls(disks: Disks, work: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return how often a boot at which *count* nested volumes follow the root makes something durable."""
    calls = work / f"calls-{count}"
    fsync, sync = os.fsync, BtrfsStorage.sync

    def note(name: str) -> None:
        with open(calls, "a") as file:
            file.write(f"{name}\n")

    def noted_fsync(fd: int) -> None:
        note("fsync")
        fsync(fd)

    def noted_sync(storage: BtrfsStorage) -> None:
        note("sync")
        sync(storage)

    with started(disks("exchange", f"many-{count}"), "exchange", work) as world, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noted_fsync)
        patch.setattr(BtrfsStorage, "sync", noted_sync)
        ended = world.run("recover", boot=NEXT_BOOT)
        assert ended.code == 0, ended.message
        assert followed(world) == count
    names = calls.read_text().split()
    return {name: names.count(name) for name in set(names)}


def test_what_makes_moves_durable_does_not_grow_with_their_number(
    disks: Disks, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = durable_calls(disks, work, MANY, monkeypatch)
    many = durable_calls(disks, work, 3 * MANY, monkeypatch)
    assert few == many
    assert few.keys() == {"fsync", "sync"}


def test_a_call_that_fails_in_the_middle_takes_all_moves_back_and_the_next_boot_does_them(
    disks: Disks, work: Path
) -> None:
    master = disks("exchange", f"many-{MANY}")
    with started(master, "exchange", work) as world:
        points = [point for point in world.run("recover", boot=NEXT_BOOT).points if ".carry." in point]
    assert len(points) > 3 * MANY
    for point in points:
        with started(master, "exchange", work) as world:
            ended = world.run("recover", f"error:{point}:{errno.EIO}", boot=NEXT_BOOT)
            assert ended.code != 0, point
            world.check_instant("")
            world.check_settled()
            assert followed(world) == 0, point
            assert world.run("recover", boot=NEXT_BOOT).code == 0
            world.check_instant("")
            world.check_settled()
            assert followed(world) == MANY, point
