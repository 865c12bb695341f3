"""SIGKILL at every fail point of the commands beside the flows; and no command that writes is without its case.

The one rule: a new command in the parser turns this file red until it says where its crash test is.
"""

import errno
import os
from pathlib import Path

import pytest

from snap_upgrade.cli import parser
from snap_upgrade.cli.main import READING
from tests.crash import commands, test_errors, test_kill
from tests.crash.test_kill import Case, Disks
from tests.crash.world import started

assert commands  # it makes the flows known
CASES = [
    Case("unpin", "create-pin"),
    Case("mount", "create"),
    Case("unmount", "create"),
    Case("cancel", "create-arm"),
    Case("again", "image-update"),
    Case("again-fresh", "image-update"),
    Case("again-asleep", "image-update", exit=8),
    Case("run", exit=7),
    Case("run-clone"),
]
# Each command that changes something, and the flows that walk through it.
FLOWS_OF = {
    "image-update": {"image-update", "again", "again-fresh", "again-asleep", "alternate"},
    "install": {"live", "alternate"},
    "remove": {"live", "alternate"},
    "upgrade": {"live", "alternate"},
    "run": {"run", "run-clone"},
    "rollback": {"rollback"},
    "cancel": {"cancel"},
    "create": {"create"},
    "destroy": {"destroy"},
    "activate": {"activate", "activate-once", "activate-second-once"},
    "mount": {"mount"},
    "unmount": {"unmount"},
    "rename": {"rename"},
    "describe": {"describe"},
    "pin": {"pin"},
    "unpin": {"unpin"},
    "prune": {"prune"},
    "recover": set(),  # killed at each of its points after every kill of every flow; --abandon: below
}


def test_every_command_that_writes_is_killed_somewhere() -> None:
    assert FLOWS_OF.keys() | READING == {command.name for command in parser.COMMANDS}
    assert {flow for flows in FLOWS_OF.values() for flow in flows} <= {case.flow for case in test_kill.CASES + CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_killed_command_leaves_what_was_or_what_was_asked_for(case: Case, disks: Disks, work: Path) -> None:
    test_kill.test_a_kill_anywhere_leaves_what_was_or_what_was_asked_for(case, "exchange", disks, work)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_command_whose_calls_fail_says_so(case: Case, number: int, disks: Disks, work: Path) -> None:
    test_errors.test_a_call_that_fails_anywhere_is_said_and_the_state_is_whole(case, "exchange", number, disks, work)


def test_abandoning_killed_anywhere_can_be_done_again(disks: Disks, work: Path) -> None:
    master = disks("exchange", "create")
    with started(master, "exchange", work) as world:
        assert world.run("image-update", "kill:packages.file#2").killed
        points = world.run("abandon").points
    assert {"journal.end.before#1", "journal.end.after#1", "journal.moved#1"} <= set(points)
    for point in points:
        with started(master, "exchange", work) as world:
            assert world.run("image-update", "kill:packages.file#2").killed
            made = world.volumes()
            assert world.run("abandon", f"kill:{point}").killed, point
            world.check_instant("")
            assert world.run("abandon").code == 0, point
            assert world.run("recover").code == 0, point
            assert world.volumes() == made, point  # what it made stays
            assert os.listdir(world.state / "journal") == [], point
            assert sorted(os.listdir(world.state / "history")) == ["1.json", "2.json"], point
