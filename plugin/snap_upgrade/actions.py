"""What each step does, and how a half-done one is taken back.

The rule: every action looks before it acts and can be repeated; it destroys only what a record of ours, or
the very step that an open journal names, says is ours.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, assert_never

from snap_upgrade import journal
from snap_upgrade.boot import BootLoader
from snap_upgrade.config import Config
from snap_upgrade.core.errors import InternalError, NeedsPerson, NotFound, Refused, StorageError
from snap_upgrade.core.model import Kind, Record, State, Volume
from snap_upgrade.core.names import shown
from snap_upgrade.core.plan import STATE, clone_path
from snap_upgrade.core.steps import (
    Activate,
    CarryNested,
    Describe,
    Destroy,
    MakeClone,
    Mount,
    Packages,
    Promote,
    Rename,
    Seal,
    Step,
    TakeSnapshot,
    Unmount,
    inverse,
)
from snap_upgrade.nested import carry, clone_parts, destroy_parts, is_part, move_nested, take_parts
from snap_upgrade.packages import PackageManager
from snap_upgrade.records import Inventory, Records
from snap_upgrade.storage import Storage
from snap_upgrade.system import failpoint, files, users

POINTER = "pointer.json"
MOUNTS = Path("/run/snap-upgrade/mnt")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as found: *root* is ``/``, or the directory given by -R; *state* is the state directory."""

    root: Path
    storage: Storage
    loader: BootLoader
    config: Config
    state: Path
    manager: PackageManager | None

    @property
    def records(self) -> Records:
        """The records of what is ours."""
        return Records(self.state)

    def inventory(self) -> Inventory:
        """Return what is ours now, joined with the volumes that are there."""
        return self.records.join(self.storage.volumes())


def do(step: Step, machine: Machine, transaction: str) -> dict[str, Any]:
    """Do *step* for *transaction*; return what the journal should remember of it."""
    match step:
        case TakeSnapshot():
            return _snapshot(step, machine, transaction)
        case MakeClone():
            return _clone(step, machine, transaction)
        case Seal(name=name, state=state):
            record = machine.inventory().find(name).record
            # The record is on disk at once, what packages wrote is not: without this a cut of the power could
            # leave half an environment that is called complete.
            machine.storage.sync()
            machine.records.update(record, state=State(state))
        case Activate():
            _activate(step, machine)
        case Promote():
            raise InternalError("a promotion needs the transaction's own memory: see promote()")
        case Destroy(name=name):
            who = users_of_failed(machine, machine.inventory(), name)
            return {"in_use_by": who} if who else destroy(machine, name)
        case Rename():
            _rename(step, machine)
        case Describe():
            _describe(step, machine)
        case Mount(name=name, target=target, read_only=read_only):
            uuid = machine.inventory().find(name).volume.uuid
            if Path(target) not in machine.storage.mounted_at(uuid):
                if Path(target).parent == MOUNTS:
                    make_mount_place(Path(target))
                machine.storage.mount(uuid, Path(target), read_only)
        case Unmount(name=name, target=target):
            uuid = machine.inventory().find(name).volume.uuid
            if Path(target) in machine.storage.mounted_at(uuid):
                _unmount(machine, uuid, Path(target), lazy=_is_restore(machine, transaction))
        case CarryNested():
            carry(step, machine)
        case Packages():
            raise InternalError("the package manager's step is the flow's own")
        case _:
            assert_never(step)
    return {}


def _is_restore(machine: Machine, transaction: str) -> bool:
    """Whether *transaction* works on a root at -R DIR: what failed there gives way, whoever stands in it."""
    return journal.read(machine.state, transaction).flow == "alternate-root"


def _unmount(machine: Machine, uuid: str, target: Path, lazy: bool) -> None:
    try:
        machine.storage.unmount(target, lazy)
    except StorageError as error:
        who = ", ".join(users_of(machine, uuid)) if error.errno == errno.EBUSY else ""
        if not who:
            raise
        what = f"cannot unmount {target}: {who} use it; it is still mounted"
        raise StorageError(what, errno.EBUSY, "let them leave it, then do this again") from error


def users_of(machine: Machine, uuid: str) -> list[str]:
    """Return the processes in the volume *uuid*, also where its mount is seen no more."""
    with machine.storage.opened(uuid) as root:
        return users.inside(os.stat(root).st_dev)


def still_inside(machine: Machine, uuid: str) -> str:
    """Return who is still in the failed environment *uuid*, if it is there, as the rest of a sentence."""
    owned = machine.inventory().by_uuid(uuid)
    who = users_of(machine, uuid) if owned else []
    return f"; {', '.join(who)} is still in what failed, which is kept as {owned.record.name}" if owned and who else ""


def users_of_failed(machine: Machine, inventory: Inventory, name: str) -> list[str]:
    """Return who is in the failed environment *name*, which was unmounted under them.

    It stays until they leave: no mount shows them any more, and Linux would destroy it under them.
    """
    uuids = (one.record.uuid for one in inventory.owned if one.record.name == name and one.record.state is State.FAILED)
    return [who for uuid in uuids for who in users_of(machine, uuid)]


def make_mount_place(target: Path) -> None:
    """Make *target*, in the folder of our own mounts, which only root gets into.

    In an older system lie the set-uid programs that were replaced because of their holes: nobody else may reach them.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.lstat(target.parent)
    if status.st_uid != 0 or not stat.S_ISDIR(status.st_mode):
        raise Refused(f"{target.parent} is no directory of root's", f"rm -r {target.parent}")
    os.chmod(target.parent, 0o700)
    target.mkdir(mode=0o700, exist_ok=True)


def check(step: Step, machine: Machine) -> None:
    """Raise Refused if the place that *step* is to make something at is taken. Asked before the step is begun:
    afterwards what lies there counts as made by it, and may be taken back."""
    if isinstance(step, TakeSnapshot | MakeClone):
        if machine.storage.at(step.path) is not None:
            raise Refused(f"{shown(step.path)} is taken by a volume that is not on record", "snap-upgrade status")
        if step.name in machine.inventory().names():
            raise Refused(f"there is an environment or snapshot {step.name} already", "snap-upgrade list")


def undo(step: Step, machine: Machine, transaction: str) -> None:
    """Take *step* back, however far it came."""
    match step:
        case TakeSnapshot(source=source, path=path):
            _remove_made(machine, path, {source}, transaction)
            _remove_parts(machine, path, is_undo=True)
        case MakeClone(origin=origin, path=path):
            inventory = machine.inventory()
            parents = {one.record.uuid for one in inventory.owned if one.record.name == origin}
            _remove_made(machine, path, parents, transaction)
        case _:
            back = inverse(step)
            if back is not None:
                do(back, machine, transaction)


def _remove_made(machine: Machine, path: str, parents: set[str], transaction: str) -> None:
    """Destroy the volume at *path* if it was made from one of *parents*; the journal names the path as ours to use."""
    volume = machine.storage.at(path)
    if volume is None:
        _forget_destroyed(machine, path, transaction)
        return
    if volume.parent_uuid not in parents:
        raise NeedsPerson(
            f"at {path} lies a volume that this transaction did not make; it is left alone",
            "look at it in a mount of the top level, and move it elsewhere",
        )
    _destroy_tree(machine, volume, is_unborn=True)
    machine.records.drop(volume.uuid)


def _remove_parts(machine: Machine, path: str, is_undo: bool = False) -> None:
    """Destroy the parts of the snapshot that was at *path*: after it, so that no snapshot is seen without its parts."""
    gone = destroy_parts(machine, path, is_undo)
    if gone:
        machine.storage.sync()
    for uuid in gone:
        machine.records.drop(uuid)


def _forget_destroyed(machine: Machine, path: str, transaction: str) -> None:
    """Drop what *transaction* recorded at *path* and inside, where a crash came between volume and record."""
    for record in machine.inventory().missing:
        if record.transaction == transaction and (record.path == path or record.path.startswith(f"{path}/")):
            machine.records.drop(record.uuid)


def _snapshot(step: TakeSnapshot, machine: Machine, transaction: str) -> dict[str, Any]:
    volume = machine.storage.snapshot(step.source, step.path)
    failpoint.reach("action.snapshot.made")
    # Before anything is written: as near to the same instant as can be.
    parts = take_parts(machine, step.source, step.path)
    for relative, part in parts:
        machine.records.enrol(part, Kind.PART, f"{step.name}/{relative}", State.READY, transaction, part.parent_uuid)
        failpoint.reach("action.part.recorded")
    # The last: what is on record as a snapshot has all its parts.
    machine.records.enrol(volume, Kind.SNAPSHOT, step.name, State.READY, transaction, step.source)
    return {"uuid": volume.uuid}


def _clone(step: MakeClone, machine: Machine, transaction: str) -> dict[str, Any]:
    origin = machine.inventory().find(step.origin)
    volume = machine.storage.clone(origin.volume.uuid, step.path)
    failpoint.reach("action.clone.made")
    clone_parts(machine, volume, origin, step.name, transaction)
    machine.records.enrol(
        volume,
        Kind.ENVIRONMENT,
        step.name,
        State(step.state),
        transaction,
        origin.record.uuid,
        step.description,
    )
    return {"uuid": volume.uuid}


def _activate(step: Activate, machine: Machine) -> None:
    inventory = machine.inventory()
    target = inventory.find(step.name)
    if target.record.kind is not Kind.ENVIRONMENT or target.record.state is not State.READY:
        raise Refused(f"{step.name} is not a complete environment and cannot be activated")
    before = machine.storage.boots_next()
    pointer = machine.state / POINTER
    if step.back:
        back = inventory.find(step.back).record.uuid
        content = {"version": 1, "temporary": target.record.uuid, "back_to": back}
        files.write_durable(pointer, (json.dumps(content) + "\n").encode())
    machine.storage.activate(target.record.uuid)
    failpoint.reach("action.activate.switched")
    if not step.back:
        files.remove_durable(pointer)
    read_back = machine.storage.boots_next()
    if read_back is None or read_back.uuid != target.record.uuid:
        found = "nothing that is known" if read_back is None else shown(read_back.path)
        raise NeedsPerson(f"{step.name} was activated, but {found} boots next", "snap-upgrade status")
    uuids = {target.record.uuid} | ({before.uuid} if before else set())
    uuids |= {one.record.uuid for one in inventory.owned if one.record.name == step.previous}
    settle_places(machine, uuids)


def settle_places(machine: Machine, uuids: set[str]) -> None:
    """Move volumes that an exchange left under another's name to their own, and record where they are."""
    for uuid in sorted(uuids):
        owned = machine.inventory().by_uuid(uuid)
        if owned is None:
            continue
        own = clone_path(owned.record.name)
        is_ours = owned.volume.path.startswith(f"{STATE}/be/")
        if is_ours and owned.volume.path != own and machine.storage.at(own) is None:
            machine.storage.rename(uuid, own)
            failpoint.reach("action.settled")
            owned = machine.inventory().by_uuid(uuid) or owned
        machine.records.update(owned.record, path=owned.volume.path)
        _record_parts(machine, uuid)


def _record_parts(machine: Machine, uuid: str) -> None:
    """Record where the parts of the environment *uuid* are now, and whose they are by its name."""
    inventory = machine.inventory()
    outer = inventory.by_uuid(uuid)
    if outer is None:
        return
    for part in machine.storage.nested(uuid):
        known = inventory.by_uuid(part.uuid)
        if known is not None and is_part(inventory, part):
            relative = PurePosixPath(part.path).relative_to(outer.volume.path)
            machine.records.update(known.record, path=part.path, name=f"{outer.record.name}/{relative}")


def promote(step: Promote, machine: Machine, good: str, failed: str) -> None:
    """Let the volumes *good* and *failed* (uuids, from the journal) change places, then names."""
    there = machine.storage.at(step.path)
    if there is not None and there.uuid == failed:
        machine.storage.exchange(failed, good)
        failpoint.reach("action.promote.exchanged")
        there = machine.storage.at(step.path)
    if there is None or there.uuid != good:
        raise NeedsPerson(f"{step.path} holds neither the failed nor the restored environment", "snap-upgrade status")
    machine.storage.sync()
    inventory = machine.inventory()
    new, old = inventory.by_uuid(good), inventory.by_uuid(failed)
    if new is None or old is None:
        raise NeedsPerson(f"the record of {step.failed} is gone", "snap-upgrade status")
    # What the user said of the environment stays with its name; once the failed one lost the name, that is done.
    kept = {} if old.record.name != step.failed else {
        "pinned": old.record.pinned, "description": old.record.description, "adopted": old.record.adopted,
        "lived": old.record.lived}  # fmt: skip
    machine.records.update(new.record, name=step.failed, state=State.READY, path=new.volume.path, **kept)
    failpoint.reach("action.promote.recorded")
    machine.records.update(
        old.record,
        name=step.good,
        state=State.FAILED,
        path=old.volume.path,
        pinned=False,
        adopted=False,
        lived=False,
    )
    failpoint.reach("action.promote.recorded")
    move_nested(machine, old.volume, new.volume)
    _record_parts(machine, good)
    settle_places(machine, {failed})


def destroy(machine: Machine, name: str) -> dict[str, Any]:
    """Destroy what is recorded as *name*; return what was kept of others' that lay inside."""
    inventory = machine.inventory()
    for record in inventory.missing:
        if record.name == name:
            _forget(machine, record)
            return {}
    try:
        owned = inventory.find(name)
    except NotFound:
        return {}  # destroyed already, by this step before a crash
    layout = machine.storage.layout()
    following = machine.storage.boots_next()
    if owned.record.uuid == layout.running.uuid or (following and owned.record.uuid == following.uuid):
        raise Refused(f"{name} is running or boots next and cannot be destroyed", "activate another one first")
    kept = _destroy_tree(machine, owned.volume, is_unborn=owned.record.state is State.BUILDING)
    if owned.record.kind is Kind.SNAPSHOT:
        _remove_parts(machine, owned.record.path)
    machine.records.drop(owned.record.uuid)
    return {"kept": kept} if kept else {}


def _forget(machine: Machine, record: Record) -> None:
    """Drop *record*, whose volume is gone, and the parts that went with it or still lie beside it."""
    if record.kind is Kind.SNAPSHOT:
        _remove_parts(machine, record.path)
    for uuid in (*_lost_parts(machine.inventory(), record.path), record.uuid):
        machine.records.drop(uuid)


def is_running(machine: Machine, name: str) -> bool:
    """Whether the environment recorded as *name* is the running root."""
    owned = machine.inventory().by_uuid(machine.storage.layout().running.uuid)
    return owned is not None and owned.record.name == name


def _destroy_tree(machine: Machine, volume: Volume, is_unborn: bool) -> list[str]:
    """Destroy *volume*, the parts we cloned inside it first; move what is others' aside and return where to.

    What scripts made inside a clone that never booted (*is_unborn*) goes with it: nobody else could reach it.
    """
    kept: list[str] = []
    inventory = machine.inventory()
    inside = machine.storage.nested(volume.uuid)
    ours = [
        one
        for one in inside
        if is_part(inventory, one) or (is_unborn and one.created_generation > volume.created_generation)
    ]
    others = [one for one in inside if one not in ours]
    for nested in inside:
        if nested in ours:
            machine.storage.destroy(nested.uuid)
            failpoint.reach("action.destroy.part")
        elif not any(nested.path.startswith(f"{outer.path}/") for outer in others):
            # What lies inside this one goes with it, in its place.
            kept.append(_put_aside(machine, nested))
            failpoint.reach("action.destroy.aside")
    machine.storage.destroy(volume.uuid)
    failpoint.reach("action.destroy.gone")
    # Records go only when the cut of the power cannot bring the volumes back: they would then be nobody's.
    machine.storage.sync()
    for uuid in [nested.uuid for nested in ours] + _lost_parts(inventory, volume.path):
        machine.records.drop(uuid)
    return kept


def _lost_parts(inventory: Inventory, path: str) -> list[str]:
    """Return the uuids of parts that were in the environment at *path* and whose volumes are gone, records not yet."""
    lost = [record for record in inventory.missing if record.kind is Kind.PART]
    return [record.uuid for record in lost if record.path.startswith(f"{path}/")]


def _put_aside(machine: Machine, nested: Volume) -> str:
    target = f"{STATE}/kept/{nested.uuid}"
    machine.storage.rename(nested.uuid, target)
    return target


def _rename(step: Rename, machine: Machine) -> None:
    inventory = machine.inventory()
    if any(one.record.name == step.new for one in inventory.owned):
        if all(one.record.name != step.name for one in inventory.owned):
            settle_places(machine, {inventory.find(step.new).record.uuid})
            return  # done before a crash
        raise Refused(f"there is an environment {step.new} already")
    record = inventory.find(step.name).record
    machine.records.update(record, name=step.new)
    settle_places(machine, {record.uuid})


def _describe(step: Describe, machine: Machine) -> None:
    record = machine.inventory().find(step.name).record
    if step.field == "pinned":
        machine.records.update(record, pinned=step.value == "yes")
    elif step.field == "description":
        machine.records.update(record, description=step.value)
    else:
        raise InternalError(f"a record has no field {step.field}")
