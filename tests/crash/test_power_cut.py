"""The power goes while a flow runs: every write of the disk is logged, cut somewhere, mounted, looked at, recovered.

The one rule: at every cut what boots is a whole environment, and one boot later the state is the one before or the
one asked for; and once the user was told, it is the one he was told of. The last test takes one safeguard away and must
see this suite turn red.
"""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snap_upgrade.config import Config
from snap_upgrade.storage.btrfs import BtrfsStorage
from tests.crash.test_device import states
from tests.crash.test_kill import NEXT_BOOT, Case, Disks, allowed
from tests.crash.world import World, opened, started
from tests.lab import kernel
from tests.lab.blockdev import reflink
from tests.lab.blocklog import BlockLog, Cut, LoggedDevice, Replay, cuts, reflink_scratch, settled
from tests.lab.image import copy

SEED = 20261121
CUTS = 60
FEWER_CUTS = 40
TOLD_CUTS = 6  # at the instant at which the user is told, with ever other parts of what was not flushed
FLOWS = [
    pytest.param(Case("image-update", "create"), "exchange", id="image-update-exchange"),
    pytest.param(Case("image-update", "create"), "default", id="image-update-default"),
    pytest.param(Case("live", "create", fails=True, exit=7, live="initial"), "exchange", id="live-fails"),
    pytest.param(Case("alternate", "create", live="other"), "exchange", id="alternate"),
    pytest.param(Case("activate", "create"), "exchange", id="activate-exchange"),
    pytest.param(Case("activate", "create"), "default", id="activate-default"),
    pytest.param(Case("destroy", "create"), "exchange", id="destroy"),
    pytest.param(Case("cancel", "image-update"), "exchange", id="cancel"),
]
FEWER = [
    pytest.param(Case("rollback", "live"), "exchange", id="rollback-exchange"),
    pytest.param(Case("rollback", "live!", live="initial"), "default", id="rollback-after-failure"),
    pytest.param(Case("alternate", "create", fails=True, exit=6, live="other"), "exchange", id="alternate-fails"),
    pytest.param(
        Case("prune", "create-both-old", config=Config(reserve_mib=1, keep_environments=0)), "exchange", id="prune"
    ),
]


@contextmanager
def recorded(case: Case, layout: str, disks: Disks, scratch: Path) -> Iterator[BlockLog]:
    """Run the flow of *case* on a device that logs; yield the log."""
    image = scratch / "image"
    copy(disks(layout, case.prepared), image)
    reflink(image, scratch / "base")
    with LoggedDevice(image, scratch / "log") as device:
        fd = kernel.mount_detached(device.path, "btrfs", {"subvolid": "5"})
        try:
            place = scratch / "place"
            place.mkdir()
            world = World(device.path, kernel.fd_path(fd), layout, place)
            ended = world.run(case.flow, fails=case.fails, config=case.config)
            device.mark("told")
            assert ended.code == case.exit, ended.message
        finally:
            os.close(fd)
    yield BlockLog(scratch / "log")


def chosen_cuts(log: BlockLog, count: int) -> list[Cut]:
    """Return *count* cuts anywhere, and those at the instant of the answer."""
    told = log.index_of("told")
    found = {*cuts(log, count, SEED), Cut(told, "prefix", 0, log.label(told))}
    found |= {Cut(told, "volatile", SEED + number, log.label(told)) for number in range(TOLD_CUTS)}
    return sorted(found, key=lambda cut: (settled(log, cut), cut.index, cut.model, cut.seed))


def boots_after(case: Case, layout: str, disks: Disks, work: Path) -> str:
    """Return what boots next when the user is told, from a run without a cut."""
    with started(disks(layout, case.prepared), layout, work) as world:
        assert world.run(case.flow, fails=case.fails, config=case.config).code == case.exit
        return world.summary().boots


def bad_cuts(case: Case, layout: str, disks: Disks, work: Path, count: int) -> tuple[list[str], int]:
    """Return what was wrong after any of *count* cuts, and how many were looked at."""
    good, _ = allowed(disks, case, layout, work)
    told = states(case, disks(layout, case.prepared), layout, work, is_run=True)
    boots = boots_after(case, layout, disks, work)
    bad = []
    chosen = []
    with reflink_scratch(work, 4 << 30) as scratch, recorded(case, layout, disks, scratch) as log:
        chosen = chosen_cuts(log, count)
        with Replay(scratch / "base", log, scratch) as replay:
            for cut in chosen:
                try:
                    with replay.state(cut) as image, opened(image) as (device, top):
                        world = World(device, top, layout, work)
                        world.check_instant(case.live)
                        is_told = cut.index >= log.index_of("told")
                        # No recovery comes before the kernel: what was promised to boot must be there by itself.
                        assert not is_told or world.summary().boots == boots, world.summary()
                        ended = world.run("recover", boot=NEXT_BOOT)
                        assert ended.code == 0, ended.message
                        world.check_instant(case.live)
                        world.check_settled()
                        assert world.summary() in good, world.summary()
                        assert not is_told or world.summary() in told, world.summary()
                except (AssertionError, OSError, ValueError) as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    bad.append(f"{cut}: {type(error).__name__} {str(error)[:600]} at {where.line}")
    return bad, len(chosen)


@pytest.mark.parametrize(
    ("case", "layout", "count"),
    [pytest.param(*one.values, CUTS, id=one.id) for one in FLOWS]
    + [pytest.param(*one.values, FEWER_CUTS, id=one.id) for one in FEWER],
)
def test_a_power_cut_anywhere_leaves_a_bootable_system_and_one_of_two_states(
    case: Case, layout: str, count: int, disks: Disks, work: Path
) -> None:
    bad, looked_at = bad_cuts(case, layout, disks, work, count)
    print(f"seed {SEED}: {looked_at} cuts")
    assert looked_at >= count // 2
    assert bad == [], "\n".join(bad)


def test_without_the_commit_before_the_verdict_a_cut_is_seen_to_spoil_what_boots(
    disks: Disks, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BtrfsStorage, "sync", lambda self: None)
    bad, _ = bad_cuts(Case("image-update", "create"), "exchange", disks, work, CUTS)
    assert bad != []
