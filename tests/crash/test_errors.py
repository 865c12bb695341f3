"""A call that fails at any point, a full file system, a read-only one, a device that dies: said, and put right.

The one rule: after an error the state is what was before, or what was asked for, or the transaction is open, the
message says so, and one recovery puts it right.
"""

import errno
import os
from pathlib import Path

import pytest

from snap_upgrade.core import errors
from tests.crash.test_kill import ALL, Case, Disks, allowed, recover
from tests.crash.world import LAYOUTS, World, started
from tests.lab import faults

HONEST = {
    errors.EXIT_REFUSED,
    errors.EXIT_UNCHANGED,
    errors.EXIT_RESTORED,
    errors.EXIT_WAY_BACK,
    errors.EXIT_NEEDS_PERSON,
}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize(("case", "layout"), ALL)
def test_a_call_that_fails_anywhere_is_said_and_the_state_is_whole(
    case: Case, layout: str, number: int, disks: Disks, work: Path
) -> None:
    good, points = allowed(disks, case, layout, work)
    with started(disks(layout, case.prepared), layout, work) as world:
        good.add(world.summary())  # not even the running root on record
    for point in points:
        with started(disks(layout, case.prepared), layout, work) as world:
            failing = f"error:{point}:{number}"
            ended = world.run(case.flow, failing, fails=case.fails, config=case.config, boot=case.boot)
            where = f"{point}: exit {ended.code}, {ended.message}"
            assert ended.code in HONEST | {case.exit}, where
            assert ended.code in {0, case.exit} or ended.message, where
            world.check_instant(case.live)
            is_open = os.listdir(world.state / "journal") != []
            if is_open:
                assert ended.code == errors.EXIT_NEEDS_PERSON, where
                assert "open" in ended.message, where
            else:
                world_is_settled(world, where)
                assert world.summary() in good, where
            recover(world, case, boot=case.boot)
            world_is_settled(world, where)
            assert world.summary() in good, where


def world_is_settled(world: World, where: str) -> None:
    try:
        world.check_settled()
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from error


@pytest.mark.parametrize("headroom", [0, 64 << 10, 1 << 20])
@pytest.mark.parametrize(
    "case", [Case("create"), Case("activate", "create"), Case("destroy", "create"), Case("image-update"),
             Case("live", live="initial")], ids=str
)  # fmt: skip
def test_a_really_full_file_system_loses_nothing(case: Case, headroom: int, disks: Disks, work: Path) -> None:
    with started(disks("exchange", case.prepared), "exchange", work) as world:
        before = world.volumes()
        faults.fill(world.top, headroom)
        ended = world.run(case.flow, config=case.config)
        assert ended.code in HONEST | {0}, ended
        assert ended.code == 0 or ended.message
        world.check_instant(case.live)
        for path in world.top.glob("ballast*"):
            if path.is_file():
                path.unlink()
        world.run("nothing")
        recover(world, case)
        world.check_settled()
        if case.flow != "destroy":
            assert before.keys() <= world.volumes().keys()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_read_only_file_system_is_refused_and_nothing_is_changed(layout: str, disks: Disks, work: Path) -> None:
    with started(disks(layout, "create"), layout, work) as world:
        before = world.summary()
        for flow in ("activate", "destroy", "image-update", "live", "recover"):
            ended = world.run(flow, read_only=True)
            assert ended.code == errors.EXIT_REFUSED, (flow, ended)
            assert "read-only" in ended.message.lower(), (flow, ended)
        assert world.summary() == before
