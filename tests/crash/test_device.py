"""The device begins to refuse writes while a flow runs: what is said is true, and a healed device is put right.

The one rule: what the user was told is held against what is on the device after a new mount, where only what was
really written is left.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snap_upgrade import journal
from snap_upgrade.core import errors
from snap_upgrade.core.errors import StateDamaged
from tests.crash.driver import Ended
from tests.crash.test_errors import HONEST
from tests.crash.test_kill import NEXT_BOOT, Case, Disks, allowed
from tests.crash.world import Summary, World, started
from tests.lab import kernel
from tests.lab.blockdev import sparse_copy
from tests.lab.blocklog import BlockLog, LoggedDevice
from tests.lab.faults import FailingDevice

SEED = 20261121
POINTS = 30
NOTHING_CHANGED = {errors.EXIT_REFUSED, errors.EXIT_UNCHANGED}
FLOWS = [
    pytest.param(Case("create"), "exchange", id="create"),
    pytest.param(Case("activate", "create"), "exchange", id="activate-exchange"),
    pytest.param(Case("activate", "create"), "default", id="activate-default"),
    pytest.param(Case("image-update", "create"), "exchange", id="image-update"),
    pytest.param(Case("live", "create", fails=True, exit=7, live="initial"), "exchange", id="live-fails"),
]


@contextmanager
def mounted(device: Path, layout: str, work: Path) -> Iterator[World]:
    """Mount *device* and yield the machine on it."""
    fd = kernel.mount_detached(device, "btrfs", {"subvolid": "5"})
    try:
        yield World(device, kernel.fd_path(fd), layout, work)
    finally:
        os.close(fd)


def run(world: World, case: Case) -> Ended:
    return world.run(case.flow, fails=case.fails, config=case.config)


def writes_of(case: Case, master: Path, layout: str, work: Path) -> int:
    """Return how many writes and flushes the flow needs, the mount's own among them."""
    image = work / "image"
    sparse_copy(master, image)
    with LoggedDevice(image, work / "log") as device, mounted(device.path, layout, work) as world:
        assert run(world, case).code == case.exit
        device.mark("told")
    image.unlink()
    return BlockLog(work / "log").index_of("told")


def states(case: Case, master: Path, layout: str, work: Path, is_run: bool) -> set[Summary]:
    """Return the states that a boot and another find, with or without the flow before them."""
    found = set()
    with started(master, layout, work) as world:
        if is_run:
            assert run(world, case).code == case.exit
        for _ in range(2):
            assert world.run("recover", boot=NEXT_BOOT).code == 0
            found.add(world.summary())
    return found


def outcomes(world: World, flow: str) -> set[str]:
    """Return what the history says became of the transactions of *flow*."""
    closed = [found for found in journal.history(world.state) if not isinstance(found, StateDamaged)]
    return {str((found.last("end") or {})["outcome"]) for found in closed if found.flow == flow}


def refuse_after(count: int, case: Case, master: Path, layout: str, work: Path) -> tuple[Ended, Summary, set[str]]:
    """Run the flow on a device that does *count* more writes and then none; return what it said, what was saved, and
    what the history says of it."""
    image = work / "image"
    sparse_copy(master, image)
    try:
        with FailingDevice(image) as device:
            with mounted(device.path, layout, work) as world:
                device.fail_writes(after=count)
                ended = run(world, case)
            device.heal()
            with mounted(device.path, layout, work) as world:
                world.check_instant(case.live)
                again = world.run("recover", boot=NEXT_BOOT)
                assert again.code == 0, again.message
                world.check_instant(case.live)
                world.check_settled()
                return ended, world.summary(), outcomes(world, case.flow)
    finally:
        image.unlink()


@pytest.mark.parametrize(("case", "layout"), FLOWS)
def test_a_device_that_begins_to_refuse_writes_is_said_and_once_healed_put_right(
    case: Case, layout: str, disks: Disks, work: Path
) -> None:
    master = disks(layout, case.prepared)
    good = allowed(disks, case, layout, work)[0]
    before = states(case, master, layout, work, is_run=False)
    after = states(case, master, layout, work, is_run=True)
    total = writes_of(case, master, layout, work)
    chosen = {0, *random.Random(SEED).sample(range(1, total), min(POINTS - 1, total - 1))}
    codes = set()
    for count in sorted(chosen):
        ended, summary, told = refuse_after(count, case, master, layout, work)
        where = f"seed {SEED}, {count} of {total} writes: exit {ended.code}, {ended.message!r}"
        codes.add(ended.code)
        assert ended.code in HONEST | {case.exit}, where
        assert ended.code == 0 or ended.message or ended.code == case.exit, where
        assert "[Errno" not in ended.message, where
        assert summary in good, where
        if ended.code == case.exit or "is done, but" in ended.message:
            assert summary in after, where
        elif ended.code in NOTHING_CHANGED:
            assert summary in before, where
            assert told <= {"undone"}, where
        print(where)
    assert codes - {case.exit}, "no write failed while the flow ran"
