"""Nested volumes: those that travel with an environment and its snapshots, and those that follow the running root.

The rule: a volume is a part of ours by its record; every other is somebody's, is moved as a whole and never destroyed.
A read-only snapshot can hold no other volume, so its parts lie beside it (see `plan.part_path`).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from snap_upgrade.core.errors import NeedsPerson, Refused
from snap_upgrade.core.families import related
from snap_upgrade.core.model import Kind, Record, State, Volume
from snap_upgrade.core.names import shown
from snap_upgrade.core.plan import PARTS, STATE, part_of, part_path
from snap_upgrade.core.steps import CarryNested
from snap_upgrade.records import Inventory, Owned
from snap_upgrade.system import failpoint, kernel

if TYPE_CHECKING:
    from snap_upgrade.actions import Machine

PLACE = "trusted.snap-upgrade.nested"  # marks the empty directory that a nested volume left when it was carried away
_PLACEHOLDER = 2  # inode of the empty directory that a snapshot has in the place of a nested volume; nothing fits in it


def is_part(inventory: Inventory, volume: Volume) -> bool:
    """Whether *volume* is one that we made along with an environment or a snapshot."""
    owned = inventory.by_uuid(volume.uuid)
    return owned is not None and owned.record.kind is Kind.PART


def configured(machine: Machine, uuid: str) -> dict[str, Volume]:
    """Return the volumes inside *uuid* that are to travel with it, by their path in it, outer ones first."""
    wanted = machine.config.clone_nested
    if not wanted:
        return {}
    volumes = machine.storage.volumes()
    if uuid not in volumes:
        return {}
    top = PurePosixPath(volumes[uuid].path)
    inside = {str(PurePosixPath(one.path).relative_to(top)): one for one in reversed(machine.storage.nested(uuid))}
    return {relative: one for relative, one in inside.items() if relative in wanted}


# --- the parts of a snapshot


def take_parts(machine: Machine, source: str, path: str) -> list[tuple[str, Volume]]:
    """Snapshot what travels with the volume *source*, beside its own snapshot at *path*; return (path inside, part)."""
    made = []
    for relative, volume in configured(machine, source).items():
        _folder(machine, path).mkdir(mode=0o700, exist_ok=True)
        made.append((relative, machine.storage.snapshot(volume.uuid, part_path(path, relative))))
        failpoint.reach("action.part.made")
    return made


def parts_beside(machine: Machine, inventory: Inventory, path: str) -> list[Volume]:
    """Return the recorded parts of the snapshot at *path*."""
    prefix = f"{path}{PARTS}/"
    found = [owned.volume for owned in inventory.owned if owned.volume.path.startswith(prefix)]
    return [volume for volume in found if is_part(inventory, volume)]


def destroy_parts(machine: Machine, path: str, is_undo: bool = False) -> list[str]:
    """Destroy the parts of the snapshot at *path*; return the uuids whose records may go once that is durable.

    With *is_undo* an open journal names *path*, and a part counts as ours even before it has its record.
    """
    inventory = machine.inventory()
    prefix = f"{path}{PARTS}/"
    gone = [one.uuid for one in inventory.missing if one.kind is Kind.PART and one.path.startswith(prefix)]
    ours = parts_beside(machine, inventory, path)
    if is_undo:
        ours = [volume for volume in machine.storage.volumes().values() if volume.path.startswith(prefix)]
        _require_snapshots(ours)
    for volume in ours:
        machine.storage.destroy(volume.uuid)
        failpoint.reach("action.part.gone")
        gone.append(volume.uuid)
    try:
        _folder(machine, path).rmdir()
    except FileNotFoundError:
        pass  # it had no parts
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise  # somebody's volume in it stays, and status tells of it
    return gone


def _require_snapshots(volumes: list[Volume]) -> None:
    for volume in volumes:
        if not volume.read_only or volume.parent_uuid is None:
            raise NeedsPerson(
                f"at {shown(volume.path)} lies a volume that this transaction did not make; it is left alone",
                "look at it in a mount of the top level, and move it elsewhere",
            )


def _folder(machine: Machine, path: str) -> Path:
    return machine.state / PurePosixPath(path + PARTS).relative_to(STATE)


# --- the parts of a clone


def clone_parts(machine: Machine, clone: Volume, origin: Owned, name: str, transaction: str) -> None:
    """Give *clone*, called *name*, its own copy of what travels with *origin*.

    Of a snapshot: as it was when the snapshot was taken. What was configured only afterwards is cloned as it is now,
    or the clone would be without it.
    """
    sources = _origins(machine, origin)
    for relative in sorted(sources, key=lambda path: path.count("/")):
        target = f"{clone.path}/{relative}"
        if machine.storage.at(target) is None and not remove_placeholder(machine, clone.uuid, relative):
            continue  # its place is in another nested volume that does not travel, and takes it along
        part = machine.storage.clone(sources[relative].uuid, target)
        failpoint.reach("action.nested.made")
        machine.records.enrol(
            part, Kind.PART, f"{name}/{relative}", State.READY, transaction, origin=sources[relative].uuid
        )


def _origins(machine: Machine, origin: Owned) -> dict[str, Volume]:
    if origin.record.kind is not Kind.SNAPSHOT:
        return configured(machine, origin.record.uuid)
    inventory = machine.inventory()
    _require_recorded(machine, inventory, origin.record)
    found = {part_of(one.path): one for one in parts_beside(machine, inventory, origin.record.path)}
    if origin.record.origin is None or not machine.config.clone_nested:
        return found
    with machine.storage.opened(origin.record.uuid) as root:
        now = configured(machine, origin.record.origin)
        return {relative: one for relative, one in now.items() if awaits_nested(root, relative)} | found


def _require_recorded(machine: Machine, inventory: Inventory, snapshot: Record) -> None:
    """Raise Refused if a part of *snapshot* has no record: what it holds would be missing, or newer than the rest."""
    for volume in machine.storage.volumes().values():
        if not volume.path.startswith(f"{snapshot.path}{PARTS}/") or is_part(inventory, volume):
            continue
        is_snapshot = volume.read_only and volume.parent_uuid is not None
        if is_snapshot or part_of(volume.path) in machine.config.clone_nested:
            raise Refused(
                f"{shown(volume.path)} holds what was nested in {snapshot.name}, but its record is missing or damaged: "
                "old and new data would be mixed; nothing was changed",
                "snap-upgrade status",
            )


# --- those that nobody cloned


def move_nested(machine: Machine, source: Volume, target: Volume) -> None:
    """Move the nested volumes that nobody cloned from *source* to their empty places in *target*.

    What the failed attempt itself made has no such place and stays.
    """
    inventory = machine.inventory()
    for one in _outermost(inventory, machine.storage.nested(source.uuid)):
        relative = str(PurePosixPath(one.path).relative_to(source.path))
        if remove_placeholder(machine, target.uuid, relative):
            machine.storage.rename(one.uuid, f"{target.path}/{relative}")
            failpoint.reach("action.promote.carried")


def _outermost(inventory: Inventory, nested: list[Volume]) -> list[Volume]:
    """Return those of *nested* that nobody cloned and that lie in no other such."""
    others = [one for one in nested if not is_part(inventory, one)]
    return [one for one in others if not any(one.path.startswith(f"{outer.path}/") for outer in others)]


def left_behind(machine: Machine, inventory: Inventory) -> list[tuple[Volume, Owned]]:
    """Return the volumes that nobody cloned, with the environment each lies in, for which the running root waits.

    Newest environments first. What belongs to another system or is mounted from where it is stays there.
    """
    layout = machine.storage.layout()
    running = layout.running
    known = [*(one.record for one in inventory.owned), *inventory.missing]
    ours = related(known, running.uuid, {running.uuid: running.parent_uuid})
    homes = {one.volume.path: one for one in inventory.owned if one.record.kind is Kind.ENVIRONMENT}
    found = []
    with machine.storage.opened(running.uuid) as root:
        for volume in machine.storage.volumes().values():
            home = None if inventory.by_uuid(volume.uuid) else _home(homes, volume)
            if home is None or home.record.uuid == running.uuid or home.record.uuid not in ours:
                continue
            relative = str(PurePosixPath(volume.path).relative_to(home.volume.path))
            if awaits_nested(root, relative) and volume.path not in layout.selected and _may_move(machine, volume):
                found.append((volume, home))
    return sorted(found, key=lambda pair: inventory.owned.index(pair[1]), reverse=True)


def _may_move(machine: Machine, volume: Volume) -> bool:
    """Whether nobody uses *volume* as itself: it is not mounted, and beside no others a system at the top level."""
    if machine.storage.mounted_at(volume.uuid):
        return False
    if "/" in volume.path:
        return True
    with machine.storage.opened(volume.uuid) as root:
        return not any(os.path.lexists(root / path) for path in ("etc/os-release", "usr/lib/os-release"))


def _home(homes: dict[str, Owned], volume: Volume) -> Owned | None:
    """Return the one of *homes*, by path, that *volume* lies in; our own folder is no part of a root around it."""
    for parent in list(PurePosixPath(volume.path).parents)[:-1]:
        if str(parent) in homes:
            return homes[str(parent)]
    return homes.get("") if volume.path and volume.path.split("/")[0] != STATE else None


def carry(step: CarryNested, machine: Machine) -> None:
    """Move one volume, and leave a marked place behind. Cheap: it looks at no volume but those on the way."""
    there = machine.storage.at(step.path)
    if there is None or there.uuid != step.uuid:
        source = machine.storage.at(step.source)
        is_known = (source is not None and source.uuid == step.uuid) or step.uuid in machine.storage.volumes()
        if not is_known or there is not None:
            what = f"the nested subvolume {shown(step.source)} cannot be moved to {shown(step.path)}"
            raise NeedsPerson(what, "snap-upgrade status")
        inside, relative = _container(machine, step.path)
        remove_placeholder(machine, inside.uuid, relative)
        failpoint.reach("action.carry.cleared")
        machine.storage.rename(step.uuid, step.path)
        failpoint.reach("action.carry.moved")
    _leave_place(machine, step.source)


def _container(machine: Machine, path: str) -> tuple[Volume, str]:
    """Return the volume that *path* lies in and the rest of the path inside it."""
    for parent in list(PurePosixPath(path).parents)[:-1]:
        found = machine.storage.at(str(parent))
        if found is not None:
            return found, str(PurePosixPath(path).relative_to(parent))
    top = machine.storage.at("")
    if top is None:
        raise NeedsPerson("the top level of the file system cannot be found", "snap-upgrade status")
    return top, path


def _leave_place(machine: Machine, path: str) -> None:
    """Leave an empty marked directory where a nested volume was carried away, or it would never find back."""
    inside, relative = _container(machine, path)
    if inside.read_only:
        return
    with machine.storage.opened(inside.uuid) as root:
        place = root / relative
        if not os.path.lexists(place) and place.parent.is_dir():
            place.mkdir()
        # One that a snapshot left has Linux's own sign, and takes no mark.
        if _is_empty(root, relative) and place.stat().st_ino != _PLACEHOLDER:
            os.setxattr(place, PLACE, b"1", follow_symlinks=False)


# --- places


def remove_placeholder(machine: Machine, uuid: str, relative: str) -> bool:
    """Remove the empty directory that is in the place of a nested volume; return whether a volume fits there."""
    with machine.storage.opened(uuid) as root:
        place = root / relative
        if _is_through_link(root, relative):
            return False
        if _is_empty(root, relative):
            os.rmdir(place)
        is_open = place.parent.is_dir() and place.parent.stat().st_ino != _PLACEHOLDER
        return is_open and not os.path.lexists(place)


def awaits_nested(root: Path, relative: str) -> bool:
    """Whether *relative* is empty because a nested volume is not there: by Linux's own sign (inode 2) or our mark."""
    if not _is_empty(root, relative):
        return False
    place = root / relative
    return place.stat().st_ino == _PLACEHOLDER or PLACE in os.listxattr(place, follow_symlinks=False)


def _is_through_link(root: Path, relative: str) -> bool:
    # Without the last parent, ".": the root itself is a path through /proc/self/fd, which is a link.
    return any((root / parent).is_symlink() for parent in list(PurePosixPath(relative).parents)[:-1])


def _is_empty(root: Path, relative: str) -> bool:
    """Whether *relative* is an empty directory and no volume (rmdir would destroy it), reached through no link."""
    place = root / relative
    if _is_through_link(root, relative) or place.is_symlink() or not place.is_dir():
        return False
    return place.stat().st_ino != kernel.FIRST_FREE and not any(place.iterdir())
