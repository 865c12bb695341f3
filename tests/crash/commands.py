"""More flows for the driver: the commands that stand beside the proposal's flows.

The one rule: what a command told is checked in its own process, for a mount is seen nowhere else.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from snap_upgrade import flows, journal, manage
from snap_upgrade.actions import Machine
from snap_upgrade.core.packages import Outcome, Report, Root
from tests.crash import driver
from tests.crash.driver import UPGRADE
from tests.crash.packages import Scripted


class Runs(Scripted):
    """Does the same work when it is told to run any command."""

    def run(self, root: Root, command: list[str], log: Path, report: Report) -> Outcome:
        return self.apply(root, UPGRADE, root.path, log, report)


def _fails(machine: Machine) -> bool:
    assert isinstance(machine.manager, Scripted)
    return machine.manager.fails


def _again(is_activated: bool = True, is_fresh: bool = False) -> Callable[[Machine], int]:
    def flow(machine: Machine) -> int:
        asked = flows.ImageUpdate("image-update", UPGRADE, name="again", is_activated=is_activated, is_fresh=is_fresh)
        return flows.image_update(machine, asked).exit_code

    return flow


def _run_in_clone(machine: Machine) -> int:
    asked = flows.ImageUpdate("run --clone", program=("make",), name="updated")
    return flows.image_update(replace(machine, manager=Runs(_fails(machine))), asked).exit_code


def _run(machine: Machine) -> int:
    """A command that changes what no package manager knows of, and then says no."""

    def execute() -> int:
        (machine.root / "home/made").write_text("by a command\n")
        (machine.root / "home/made").unlink()
        return 7

    return flows.live(machine, "run", execute, is_any_command=True).exit_code


def _place(machine: Machine) -> Path:
    directory = machine.root.parent / "mounted"
    directory.mkdir(exist_ok=True)
    return directory


def _mounts(machine: Machine) -> list[Path]:
    return machine.storage.mounted_at(machine.inventory().find("other").record.uuid)


def _checked(machine: Machine, flow: str, planner: manage.Planner, done: list[Path], undone: list[Path]) -> int:
    """Run *flow*; after it *done* is what is mounted if it was closed as committed, else *undone*; open: either."""
    try:
        manage.execute(machine, flow, flow, planner, False)
    finally:
        if not any(True for _ in journal.open_journals(machine.state)):
            ends = [found for found in journal.history(machine.state) if isinstance(found, journal.Entries)]
            newest = ends[0].flow == flow and (ends[0].last("end") or {})["outcome"] == "committed" if ends else False
            assert _mounts(machine) == (done if newest else undone), (newest, _mounts(machine))
    return 0


def _mount(machine: Machine) -> int:
    target = _place(machine)
    return _checked(machine, "mount", lambda m, i: manage.plan_mount(m, i, "other", target, False), [target], [])


def _unmount(machine: Machine) -> int:
    target = _place(machine)
    machine.storage.mount(machine.inventory().find("other").record.uuid, target)
    return _checked(machine, "unmount", lambda m, i: manage.plan_unmount(m, i, "other"), [], [target])


driver.FLOWS.update({
    "unpin": driver._simple("describe", lambda m, i: manage.plan_describe(i, "other", "pinned", "no")),
    "create-pin": driver._all("create", "pin"),
    "mount": _mount,
    "unmount": _unmount,
    "again": _again(),
    "again-fresh": _again(is_fresh=True),
    "again-asleep": _again(is_activated=False),
    "run": _run,
    "run-clone": _run_in_clone,
})  # fmt: skip
