"""Run a named flow on a mounted file system, in a process that can be killed at any fail point.

The one rule: the child has its own mount namespace, its own /run and its own idea of which boot it is; when it is
killed nothing of it is left but what it wrote to the file system.
"""

import json
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import btrfsutil

from snap_upgrade import flows, journal, manage
from snap_upgrade.actions import Machine
from snap_upgrade.boot.none import NoLoader
from snap_upgrade.config import Config
from snap_upgrade.core.errors import NothingToDo, SnapUpgradeError
from snap_upgrade.core.packages import Request, Verb
from snap_upgrade.engine import Engine
from snap_upgrade.storage.btrfs import BtrfsStorage
from snap_upgrade.system import failpoint, kernel, signals
from tests.crash.packages import Scripted

UPGRADE = Request(Verb.UPGRADE)
CONFIG = Config(reserve_mib=1)
NESTED = "var/lib/nested"
CLONED = replace(CONFIG, clone_nested=(NESTED,))
MANY = 5
MS_REMOUNT = 32


@dataclass(frozen=True)
class Ended:
    """How the child ended: *code* of what it raised or returned, None if it was killed; *points* it came by."""

    code: int | None
    message: str
    points: tuple[str, ...]

    @property
    def killed(self) -> bool:
        return self.code is None


def run(device: Path, layout: str, flow: str, place: Path, failing: str = "log", *, fails: bool = False,
        boot: str = "", subvolid: int | None = None, config: Config = CONFIG,
        read_only: bool = False) -> Ended:  # fmt: skip
    """Run *flow* in a child whose root is what boots now (or *subvolid*), mounted below the folder *place*.

    *failing* is ``log`` or what SNAP_UPGRADE_FAILPOINT says. *boot* names another boot than the parent's.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read_end)
            answer = _child(device, layout, flow, place, failing, fails, boot, subvolid, config, read_only)
            os.write(write_end, json.dumps(answer).encode())
            status = 0
        except BaseException:
            os.write(write_end, json.dumps({"code": -1, "message": traceback.format_exc(), "points": []}).encode())
        finally:
            os._exit(status)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return Ended(None, "", ())
    answer = json.loads(text)
    assert answer["code"] != -1, answer["message"]
    return Ended(answer["code"], answer["message"], tuple(answer["points"]))


def _child(device: Path, layout: str, flow: str, place: Path, failing: str, fails: bool, boot: str,
           subvolid: int | None, config: Config, read_only: bool) -> dict[str, Any]:  # fmt: skip
    root = enter(device, layout, place, boot, subvolid, read_only)
    points = Path("/run/points")

    def whole() -> int:
        machine = open_machine(device, root, layout, Scripted(fails), config)
        os.environ[failpoint.VARIABLE] = f"log:{points}" if failing == "log" else failing
        return FLOWS[flow](machine)

    failpoint._seen.clear()
    try:
        code, message = _perform(whole)
    finally:
        os.environ.pop(failpoint.VARIABLE, None)
    return {"code": code, "message": message, "points": points.read_text().split() if points.exists() else []}


def enter(device: Path, layout: str, place: Path, boot: str = "", subvolid: int | None = None,
          read_only: bool = False) -> Path:  # fmt: skip
    """Enter a mount namespace of its own in which the root is mounted, and return where."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", "/run", "tmpfs")
    Path(failpoint.MARKER).touch()
    if boot:
        Path("/run/boot").write_text(boot + "\n")
        kernel.mount("/run/boot", "/proc/sys/kernel/random/boot_id", flags=kernel.MS_BIND)
    root = place / "root"
    root.mkdir(exist_ok=True)
    selected = "subvol=@" if layout == "exchange" else ""
    kernel.mount(str(device), str(root), "btrfs", data=f"subvolid={subvolid}" if subvolid else selected)
    if read_only:
        kernel.mount("none", str(root), flags=MS_REMOUNT | kernel.MS_RDONLY)
    return root


def open_machine(device: Path, root: Path, layout: str, manager: Scripted, config: Config = CONFIG) -> Machine:
    """Return the machine at *root* with texts that say how it boots."""
    fstab = f"{device} / btrfs {'subvol=@' if layout == 'exchange' else 'defaults'} 0 0\n"
    storage = BtrfsStorage(root, kernel_line="", fstab=fstab, swaps="")
    return Machine(root, storage, NoLoader(root), config, storage.state_dir(create=True), manager)


def _perform(flow: Callable[[], int]) -> tuple[int, str]:
    try:
        return flow(), ""
    except SnapUpgradeError as error:
        return error.exit_code, error.message
    finally:
        signals._state.is_spent = False


def _simple(name: str, planner: manage.Planner, needs_layout: bool = True) -> Callable[[Machine], int]:
    def flow(machine: Machine) -> int:
        manage.execute(machine, name, name, planner, needs_layout)
        return 0

    return flow


def _image_update(machine: Machine) -> int:
    return flows.image_update(machine, flows.ImageUpdate("image-update", UPGRADE, name="updated")).exit_code


def _live(machine: Machine) -> int:
    manager = machine.manager
    assert isinstance(manager, Scripted)

    def execute() -> int:
        try:
            manager.work(machine.root)
        except SnapUpgradeError:
            return 1
        return 0

    return flows.live(machine, "apt upgrade", execute).exit_code


def _alternate(machine: Machine) -> int:
    manager = machine.manager
    assert isinstance(manager, Scripted)
    directory = machine.root.parent / "alternate"
    directory.mkdir(exist_ok=True)
    storage = machine.storage
    assert isinstance(storage, BtrfsStorage)
    storage.mount(machine.inventory().find("other").record.uuid, directory)
    storage._top()
    other = open_machine(Path(storage._device), directory, "default", manager, machine.config)
    return flows.alternate_root(other, "-R upgrade", UPGRADE).exit_code


def _recover(machine: Machine) -> int:
    engine = Engine(machine)
    with engine.exclusive("recover"):
        flows.recover(machine, engine)
        flows.adopt(machine)
        steps = manage.plan_boot(machine, manage.survey(machine))
        if steps:
            engine.simple("boot", steps, "recover --boot")
    return 0


def _all(*parts: str) -> Callable[[Machine], int]:
    def flow(machine: Machine) -> int:
        for part in parts:
            code, message = _perform(partial(FLOWS[part], machine))
            assert code in {0, 7, NothingToDo.exit_code}, (part, code, message)
        return 0

    return flow


def _age(machine: Machine) -> int:
    for owned in machine.inventory().owned:
        # As an image update describes what it makes: what a person makes is never pruned.
        machine.records.update(owned.record, created=1000.0, description="updated from initial")
    return 0


def _nest(count: int) -> Callable[[Machine], int]:
    """Make *count* more nested volumes in the running root, each with its number in it."""

    def flow(machine: Machine) -> int:
        (machine.root / "var/lib/many").mkdir()
        for number in range(count):
            place = machine.root / "var/lib/many" / str(number)
            btrfsutil.create_subvolume(str(place))
            (place / "which").write_text(f"{number}\n")
        return 0

    return flow


def _abandon(machine: Machine) -> int:
    engine = Engine(machine)
    with engine.exclusive("abandon"):
        for number in journal.numbers(machine.state / "journal"):
            engine.abandon(str(number))
    return 0


FLOWS: dict[str, Callable[[Machine], int]] = {
    "nothing": _simple("nothing", lambda m, i: []),
    "create": _simple("create", lambda m, i: manage.plan_create(m, i, "other", "", "made by hand")),
    "create-second": _simple("create", lambda m, i: manage.plan_create(m, i, "second", "", "")),
    "destroy-second": _simple("destroy", lambda m, i: manage.plan_destroy(m, i, ["second"])),
    "destroy": _simple("destroy", lambda m, i: manage.plan_destroy(m, i, ["other"])),
    "activate": _simple("activate", lambda m, i: manage.plan_activate(m, i, "other", False)),
    "activate-once": _simple("activate", lambda m, i: manage.plan_activate(m, i, "other", True)),
    "activate-second-once": _simple("activate", lambda m, i: manage.plan_activate(m, i, "second", True)),
    "rename": _simple("rename", lambda m, i: manage.plan_rename(m, i, "other", "renamed")),
    "rollback": _simple("rollback", lambda m, i: manage.plan_rollback(m, i, "last")),
    "cancel": _simple("cancel", manage.plan_cancel),
    "prune": _simple("prune", manage.plan_prune),
    "pin": _simple("pin", lambda m, i: manage.plan_describe(i, "other", "pinned", "yes")),
    "describe": _simple("describe", lambda m, i: manage.plan_describe(i, "other", "description", "new words")),
    "image-update": _image_update,
    "live": _live,
    "alternate": _alternate,
    "recover": _recover,
    "abandon": _abandon,
    "age": _age,
}
FLOWS["create-both-old"] = _all("create", "create-second", "age")
FLOWS["create-both"] = _all("create", "create-second")
FLOWS["create-both-arm"] = _all("create", "create-second", "activate-once")
FLOWS["destroy-snapshot"] = _simple("destroy", lambda m, i: manage.plan_destroy(m, i, ["snap-1"]))
for _count in (MANY, 3 * MANY):  # another root boots next, and many nested volumes have to follow it
    FLOWS[f"nest-{_count}"] = _nest(_count)
    FLOWS[f"many-{_count}"] = _all(f"nest-{_count}", "create", "activate")
FLOWS["create-arm"] = _all("create", "activate-once")
