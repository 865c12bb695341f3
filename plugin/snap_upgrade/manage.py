"""The commands on environments: what each would do, as a plan, and its doing.

The rule: a plan is made from what is there now and shown by ``-n`` exactly as it would be run. Nothing that
runs, boots next, is the default, is mounted, pinned or named by an open journal is ever destroyed.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from snap_upgrade import journal, lineage, nested, records
from snap_upgrade.actions import POINTER, Machine, users_of_failed
from snap_upgrade.core import errors, names, plan, retention
from snap_upgrade.core.model import Kind, Method, Record, State
from snap_upgrade.core.retention import Choice, Protection
from snap_upgrade.core.steps import (
    Activate,
    CarryNested,
    Describe,
    Destroy,
    MakeClone,
    Mount,
    Rename,
    Step,
    Unmount,
)
from snap_upgrade.engine import Engine
from snap_upgrade.flows import adopt, ready, ready_at
from snap_upgrade.records import Inventory, Owned
from snap_upgrade.system import files

Planner = Callable[[Machine, Inventory], list[Step]]
_ABANDON = "snap-upgrade recover --abandon "
_UNKNOWN_NEXT = "what boots next is not an environment that snap-upgrade knows"
_METADATA_RESERVE = 8 << 20  # bytes
_FIRED = "hooks.json"
VERSION_FILE, _VERSION = "version", b"1\n"
_UPGRADE_US = "apt-get update && apt-get -o DPkg::Pre-Install-Pkgs::snap-upgrade= install snap-upgrade"


# --- what is there


def survey(machine: Machine) -> Inventory:
    """Return what is ours, with the running root in it even before it has a record. Writes and waits for nothing."""
    inventory = machine.inventory()
    running = machine.storage.layout().running
    if inventory.by_uuid(running.uuid) is not None:
        return inventory
    name = names.fresh_name("initial", inventory.names())
    record = Record(running.uuid, Kind.ENVIRONMENT, name, running.path, 0.0, None, None, State.READY, adopted=True)
    return replace(inventory, owned=(Owned(record, running), *inventory.owned))


def temporary_return(machine: Machine) -> tuple[str, str] | None:
    """Return (temporarily activated, to return to) by uuid after ``activate -t``, or None."""
    try:
        data = json.loads((machine.state / POINTER).read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise errors.StateDamaged(f"{POINTER} cannot be understood: {error}", _ABANDON + POINTER) from error
    if not isinstance(data, dict) or data.get("version") != 1:
        raise errors.StateDamaged(f"{POINTER} has a format this program does not know", _ABANDON + POINTER)
    return str(data.get("temporary")), str(data.get("back_to"))


def default_uuid(machine: Machine) -> str | None:
    """Return the environment that boots when no one-boot activation is in force."""
    following = machine.storage.boots_next()
    pointer = temporary_return(machine)
    if pointer is not None and following is not None and pointer[0] == following.uuid:
        return pointer[1]
    return following.uuid if following else None


def protection(machine: Machine, inventory: Inventory) -> Protection:
    """Return what must stay."""
    following = machine.storage.boots_next()
    mounted = frozenset(machine.storage.mount_points(owned.volume for owned in inventory.owned))
    named: set[str] = set()
    for found in journal.open_journals(machine.state):
        if isinstance(found, errors.StateDamaged):
            continue  # reported by status; what it may name cannot be known
        for step in found.entries.steps():
            named |= {str(getattr(step, key)) for key in ("name", "origin", "good", "failed") if hasattr(step, key)}
    return Protection(
        running=machine.storage.layout().running.uuid,
        next=following.uuid if following else None,
        default=default_uuid(machine),
        mounted=mounted | _unseen(machine, inventory),
        journals=frozenset(named),
        elsewhere=frozenset(owned.record.uuid for owned in inventory.owned if _lies_elsewhere(owned)),
    )


def _unseen(machine: Machine, inventory: Inventory) -> set[str]:
    """Return the failed environments that were unmounted under processes which are still in them."""
    failed = [owned.record for owned in inventory.owned if owned.record.state is State.FAILED]
    return {record.uuid for record in failed if users_of_failed(machine, inventory, record.name)}


def _lies_elsewhere(owned: Owned) -> bool:
    is_ours = owned.volume.path.startswith(f"{plan.ENVIRONMENTS}/")
    return owned.record.kind is Kind.ENVIRONMENT and not is_ours


def find_environment(inventory: Inventory, name: str) -> Owned:
    """Return the environment *name*; raise NotFound, also for a snapshot of that name."""
    owned = inventory.find(name)
    if owned.record.kind is not Kind.ENVIRONMENT:
        raise errors.NotFound(f"{name} is a {owned.record.kind.value}, not an environment", "snap-upgrade list")
    return owned


# --- plans


def plan_create(machine: Machine, inventory: Inventory, name: str, source: str, description: str) -> list[Step]:
    """Clone *source* (by default the running environment) as *name*."""
    names.check_name(name)
    if name in inventory.names():
        raise errors.UsageError(f"there is an environment {name!r} already", "choose another name")
    if machine.storage.at(plan.clone_path(name)) is not None:
        raise errors.Refused(f"a volume that is not on record lies at {plan.clone_path(name)}", "snap-upgrade status")
    origin = inventory.find(source) if source else _running(machine, inventory)
    if origin.record.state is not State.READY:
        raise errors.Refused(
            f"{origin.record.name} is not complete ({origin.record.state.value}), and neither would its clone be; "
            "nothing was changed",
            f"to look into it: snap-upgrade mount {shlex.quote(origin.record.name)}",
        )
    return [MakeClone(origin.record.name, plan.clone_path(name), name, State.READY.value, description)]


def _running(machine: Machine, inventory: Inventory) -> Owned:
    uuid = machine.storage.layout().running.uuid
    return next(owned for owned in inventory.owned if owned.record.uuid == uuid)


def plan_destroy(machine: Machine, inventory: Inventory, wanted: Sequence[str]) -> list[Step]:
    """Destroy each of *wanted*, or refuse them all for the first that must stay."""
    kept = protection(machine, inventory)
    lost = {record.name for record in inventory.missing}
    for name in wanted:
        if name in lost:
            continue
        owned = inventory.find(name)
        if not owned.volume.path:
            raise errors.Refused(
                f"{name} is the top level of the file system, which holds everything else, and cannot be destroyed"
            )
        if who := users_of_failed(machine, inventory, name):
            raise errors.Refused(f"{name} is not destroyed: {', '.join(who)} is still in it", "let it leave first")
        why = retention.why_kept(owned.record, kept)
        if why:
            raise errors.Refused(f"{name} is not destroyed: {why}", "activate another, unpin, unmount or recover first")
    return [Destroy(name) for name in wanted]


def _require_room(machine: Machine) -> None:
    """Raise NoSpace where btrfs might be out of room for its own trees in the middle of the change."""
    space = machine.storage.space()
    if space.metadata_free + space.unallocated < _METADATA_RESERVE:
        have, need = (space.metadata_free + space.unallocated) >> 10, _METADATA_RESERVE >> 10
        what = f"the file system has {have} KiB left for metadata, this needs {need} KiB; nothing was changed"
        raise errors.NoSpace(what, "snap-upgrade prune")


def plan_activate(machine: Machine, inventory: Inventory, name: str, temporary: bool) -> list[Step]:
    """Make *name* boot next."""
    _require_room(machine)
    owned = find_environment(inventory, name)
    if owned.record.state is not State.READY:
        raise errors.Refused(f"{name} is not complete ({owned.record.state.value})", "snap-upgrade destroy " + name)
    following = machine.storage.boots_next()
    try:
        armed, is_known = _return_name(machine, inventory), True
    except errors.StateDamaged:
        armed, is_known = "", False  # an activation writes it anew, or removes it
    if is_known and following and following.uuid == owned.record.uuid and temporary == bool(armed):
        raise errors.NothingToDo(f"{name} boots next already")
    if is_known and temporary and following and following.uuid == owned.record.uuid:
        raise errors.NothingToDo(f"{name} boots next anyway, and not only once; nothing was changed")
    previous = inventory.by_uuid(following.uuid) if following else None
    if previous is None:
        raise errors.Refused(_UNKNOWN_NEXT, "snap-upgrade cancel")
    back = (armed or previous.record.name) if temporary else ""
    if back == name:
        back = ""  # a boot into what boots anyway afterwards is no detour
    return [Activate(name, previous.record.name, back, armed)]


def _return_name(machine: Machine, inventory: Inventory) -> str:
    """Return the environment that an earlier ``activate -t`` goes back to, or nothing."""
    pointer = temporary_return(machine)
    first = inventory.by_uuid(pointer[1]) if pointer else None
    return first.record.name if first else ""


def plan_rename(machine: Machine, inventory: Inventory, old: str, new: str) -> list[Step]:
    """Call the environment *old* by the name *new*."""
    names.check_name(new)
    find_environment(inventory, old)
    if new in inventory.names():
        raise errors.UsageError(f"there is an environment {new!r} already", "choose another name")
    return [Rename(old, new)]


def plan_mount(machine: Machine, inventory: Inventory, name: str, target: Path, read_only: bool) -> list[Step]:
    """Mount *name* at the directory *target*."""
    owned = inventory.find(name)
    there = machine.storage.mounted_at(owned.record.uuid)
    if target in there:
        raise errors.NothingToDo(f"{name} is mounted at {target} already")
    return [Mount(name, str(target), read_only or owned.record.kind is Kind.SNAPSHOT)]


def plan_unmount(machine: Machine, inventory: Inventory, which: str) -> list[Step]:
    """Unmount the environment *which*, a name or a directory, from everywhere it is mounted but ``/``."""
    steps: list[Step] = []
    for owned in inventory.owned:
        for place in machine.storage.mounted_at(owned.record.uuid):
            is_meant = which == owned.record.name or Path(which) == place
            if is_meant and place not in {Path("/"), machine.root}:
                steps.append(Unmount(owned.record.name, str(place)))
    if not steps:
        raise errors.NothingToDo(f"no environment is mounted as {which}")
    return steps


def plan_describe(inventory: Inventory, name: str, field: str, value: str) -> list[Step]:
    """Set the description or the pin of *name*."""
    record = inventory.find(name).record
    old = ("yes" if record.pinned else "no") if field == "pinned" else record.description
    if old == value:
        raise errors.NothingToDo(f"{name} is so already")
    return [Describe(name, field, value, old)]


def plan_rollback(machine: Machine, inventory: Inventory, which: str) -> list[Step]:
    """Go back: to the environment *which*, to before the transaction of that number, or to before the ``last`` one."""
    _require_room(machine)
    following = machine.storage.boots_next()
    previous = inventory.by_uuid(following.uuid) if following else None
    if previous is None:
        raise errors.Refused(_UNKNOWN_NEXT, "snap-upgrade cancel")
    if which not in {"", "last"} and not which.isdecimal():
        return plan_activate(machine, inventory, which, False)
    ident = which if which.isdecimal() else _last_restorable(machine, inventory)
    _require_own(machine, inventory, previous.record.uuid, ident)
    name = plan.way_back_name(ident)
    known = {owned.record.name: owned for owned in inventory.owned}
    if name in known and previous.record.name == name:
        raise errors.NothingToDo(f"{name} boots next already")
    is_lost = name in inventory.names() and (name not in known or _was_used(machine, known[name]))
    if is_lost and plan.snapshot_name(ident) in known:
        # What was booted or written to is no longer the state before, and what somebody deleted is none.
        name = names.fresh_name(name, inventory.names())
    has_clone = name in known
    if not has_clone:
        inventory.find(plan.snapshot_name(ident))
    return plan.rollback(ident, name, has_clone, previous.record.name, _return_name(machine, inventory))


def _require_own(machine: Machine, inventory: Inventory, following: str, ident: str) -> None:
    """Raise Refused if *ident* worked on another system than the one that runs or the one that boots next."""
    owner = lineage.worked_on(machine.state, inventory, ident)
    running = machine.storage.layout().running.uuid
    own = [lineage.line(machine.state, inventory, uuid) for uuid in (running, following)]
    if owner is None or any(owner in one for one in own):
        return
    everything = (*(owned.record for owned in inventory.owned), *inventory.missing)
    whose = next((record.name for record in everything if record.uuid == owner), "an environment that is gone")
    way_back = plan.way_back_name(ident)
    is_there = any(owned.record.name == way_back for owned in inventory.owned)
    raise errors.Refused(
        f"transaction {ident} worked on {whose}, which is neither what runs or boots next nor what that came from; "
        "nothing was changed",
        f"snap-upgrade activate {way_back}" if is_there else f"snap-upgrade history {ident}",
    )


def _was_used(machine: Machine, owned: Owned) -> bool:
    """Whether the environment was booted, or anything was written in it since it was made."""
    machine.storage.sync()  # until then a write shows nowhere
    volume = machine.storage.volumes()[owned.record.uuid]
    return owned.record.lived or volume.generation > volume.created_generation


def _last_restorable(machine: Machine, inventory: Inventory) -> str:
    """Return the newest transaction in the past of what runs, not in that of another system on the same disk."""
    own = lineage.line(machine.state, inventory, machine.storage.layout().running.uuid)

    def is_own(ident: str) -> bool:
        owner = lineage.worked_on(machine.state, inventory, ident)
        return owner in own and int(ident) <= own[owner]

    snapshots = {
        int(owned.record.transaction)
        for owned in inventory.owned
        if owned.record.transaction
        and owned.record.name
        in {plan.snapshot_name(owned.record.transaction), plan.way_back_name(owned.record.transaction)}
        and is_own(owned.record.transaction)
    }
    if not snapshots:
        raise errors.NotFound("there is no transaction to go back before", "snap-upgrade history")
    return str(max(snapshots))


def plan_cancel(machine: Machine, inventory: Inventory) -> list[Step]:
    """Let the running environment boot next again, and destroy the pending one if an image-update made it.

    What is kept as a way back, what the user made, used or gave a name, and what is pinned stays.
    """
    running = _running(machine, inventory)
    following = machine.storage.boots_next()
    if following is not None and following.uuid == running.record.uuid:
        raise errors.NothingToDo("nothing is pending: the running environment boots next")
    pending = inventory.by_uuid(following.uuid) if following else None
    previous = pending.record.name if pending else ""
    steps: list[Step] = [Activate(running.record.name, previous, "", _return_name(machine, inventory))]
    if pending is None or why_cancel_keeps(machine, inventory, pending):
        return steps
    steps.append(Destroy(pending.record.name))
    snapshot = plan.snapshot_name(str(pending.record.transaction))
    if any(owned.record.name == snapshot for owned in inventory.owned):
        steps.append(Destroy(snapshot))
    return steps


def why_cancel_keeps(machine: Machine, inventory: Inventory, pending: Owned) -> str | None:
    """Return why *pending* is more than an image-update that nobody has used yet, or None."""
    record, running = pending.record, _running(machine, inventory).record.uuid
    given = _name_from_update(machine, record)
    layout = machine.storage.layout()
    # What boots next by an exchange lies at the place that boots, and comes back to our folder with the exchange.
    is_in_place = layout.method is Method.EXCHANGE and pending.volume.path == layout.boot_path
    kept = replace(protection(machine, inventory), next=running, default=running)
    reasons = (
        (given is None, "no image-update made it"),
        (record.adopted, "it was there before snap-upgrade"),
        (record.lived, retention.LIVED),
        (given != record.name, "you gave it a name"),
        (not record.description.startswith(plan.UPDATE_TEXT), "you described it"),
        (record.uuid in kept.elsewhere and not is_in_place, f"it lies at {pending.volume.path or 'the top level'}"),
    )
    return next((why for holds, why in reasons if holds), None) or retention.why_kept(record, kept)


def _name_from_update(machine: Machine, record: Record) -> str | None:
    """Return how the image-update that made *record* called it, None if none did."""
    try:
        entries = journal.read(machine.state, record.transaction or "")
    except (errors.NotFound, errors.StateDamaged):
        return None  # nobody can say who made it: it stays
    return str(entries.begin.get("name")) if entries.flow == "image-update" else None


def choose_prune(machine: Machine, inventory: Inventory) -> list[Choice]:
    """Return the fate of every record and its reason."""
    records = [owned.record for owned in inventory.owned if owned.record.kind is not Kind.PART]
    free = machine.storage.space().available
    return retention.prune(records, protection(machine, inventory), machine.config.limits(), time.time(), free)


def plan_prune(machine: Machine, inventory: Inventory) -> list[Step]:
    """Destroy what retention gives up."""
    chosen = [choice for choice in choose_prune(machine, inventory) if choice.is_pruned]
    if not chosen:
        raise errors.NothingToDo("nothing to prune")
    return [Destroy(choice.record.name) for choice in chosen]


def plan_boot(machine: Machine, inventory: Inventory) -> list[Step]:
    """Return what a boot has to put right: return from ``activate -t``, and let nested subvolumes follow the root."""
    running = _running(machine, inventory)
    # First, for an exchange moves the running root, and with it the places that these steps name.
    steps = _carried(machine, inventory, running)
    pointer = temporary_return(machine)
    if pointer is not None and pointer[0] == running.record.uuid:
        back = inventory.by_uuid(pointer[1])
        if back is not None:
            steps.append(Activate(back.record.name, running.record.name, "", back.record.name))
    return steps


def _carried(machine: Machine, inventory: Inventory, running: Owned) -> list[Step]:
    """Return a move for every nested subvolume that nobody cloned and that lies in another environment of ours.

    The running root has an empty directory in its place; were it left behind, its data would seem lost.
    """
    return list(_moves(machine, inventory, running))


def _moves(machine: Machine, inventory: Inventory, running: Owned) -> Iterator[Step]:
    taken: set[str] = set()
    for volume, home in nested.left_behind(machine, inventory):
        relative = str(PurePosixPath(volume.path).relative_to(home.volume.path))
        target = f"{running.volume.path}/{relative}" if running.volume.path else relative
        if target not in taken and not machine.storage.mounted_at(home.record.uuid):
            taken.add(target)
            yield CarryNested(volume.uuid, volume.path, target)


# --- what others did to our state


def follow_moves(machine: Machine) -> list[str]:
    """Record where volumes are that somebody else moved; return a sentence for each. The caller holds the lock."""
    told = []
    for owned in machine.inventory().owned:
        if owned.volume.path != owned.record.path:
            machine.records.update(owned.record, path=owned.volume.path)
            told.append(f"{owned.record.name} is at {owned.volume.path or 'the top level'} now, and on record there")
    return told


def set_aside(machine: Machine, what: str) -> None:
    """Put a file of the state that cannot be understood out of the way, under its name with ``.damaged``.

    *what* is the number of a closed transaction, or a path that ``status`` names. Raises NotFound if there is no such
    file, Refused if it can be understood. The caller holds the lock.
    """
    if what.isascii() and what.isdecimal():
        try:
            journal.read(machine.state, what)
        except errors.StateDamaged:
            journal.set_aside(machine.state, what)
            return
        raise errors.Refused(f"transaction {what} is closed, and its journal is sound; nothing was changed",
                             f"snap-upgrade history {what}")  # fmt: skip
    if what == VERSION_FILE:
        _renew_version(machine.state)
        return
    folder, _, name = what.rpartition("/")
    path = machine.state / what
    is_state = what in {POINTER, _FIRED} or (folder == "records" and name not in {"", ".", ".."})
    if not is_state or not os.path.lexists(path):
        raise errors.NotFound(f"{what!r} is no transaction and no file that status names", "snap-upgrade status")
    if not _is_damaged(machine, folder, name):
        raise errors.Refused(f"{what} is sound; nothing was changed", "snap-upgrade status")
    os.rename(path, f"{path}{records.ASIDE}")
    files.sync_dir(path.parent)


def version_error(state: Path) -> errors.StateDamaged | None:
    """Return what is wrong with the version of the state, None if this program may write into it."""
    try:
        found = (state / VERSION_FILE).read_bytes()
    except FileNotFoundError:
        return None  # nothing was done yet, or the making was cut off: whoever writes first completes it
    except OSError as error:
        what = f"the version of the state of snap-upgrade cannot be read: {error.strerror}"
        return errors.StateDamaged(what, _ABANDON + VERSION_FILE)
    if found == _VERSION:
        return None
    text = found[:20].decode("ascii", "backslashreplace").strip()
    if _is_newer(found):
        what = f"the state of snap-upgrade has the version {text}: a newer snap-upgrade than this one made it"
        return errors.StateDamaged(what, _UPGRADE_US)
    what = f"the state of snap-upgrade has the version {text!r}, which is none"
    return errors.StateDamaged(what, _ABANDON + VERSION_FILE)


def _is_newer(found: bytes) -> bool:
    number = found.strip()
    return number.isdigit() and len(number) <= 9 and int(number) > int(_VERSION)


def require_version(state: Path, is_mended: bool = False) -> None:
    """Raise StateDamaged if nothing may be written into *state*; with *is_mended* only if a newer program made it."""
    error = version_error(state)
    if error is not None and not (is_mended and error.hint != _UPGRADE_US):
        raise errors.StateDamaged(f"{error.message}; nothing was changed", error.hint)


def _renew_version(state: Path) -> None:
    """Put a version that is none aside, and write the one whose format all files of the state have."""
    require_version(state, is_mended=True)
    if version_error(state) is None:
        raise errors.Refused(f"{VERSION_FILE} is sound; nothing was changed", "snap-upgrade status")
    os.rename(state / VERSION_FILE, state / f"{VERSION_FILE}{records.ASIDE}")
    files.write_durable(state / VERSION_FILE, _VERSION)


def _is_damaged(machine: Machine, folder: str, name: str) -> bool:
    """Whether the file of the state that nobody can read is really so: only then it may be put aside."""
    if folder:
        return any(f"the record {name} " in problem.message for problem in machine.records.read()[1])
    try:
        if name == _FIRED:
            return not isinstance(json.loads((machine.state / name).read_bytes()), dict)
        temporary_return(machine)
    except (errors.StateDamaged, ValueError, RecursionError):
        return True
    return False


# --- doing


def execute(machine: Machine, flow: str, command: str, planner: Planner, needs_layout: bool = True) -> list[Step]:
    """Plan under the lock and run it; return what was done, empty if there was nothing."""
    enter = ready if needs_layout else ready_at
    with enter(machine, command) as engine:
        adopt(machine)
        inventory = survey(machine)
        steps = planner(machine, inventory)
        if steps:
            engine.simple(flow, steps, command)
        return steps


def preview(machine: Machine, planner: Planner) -> list[Step]:
    """Return what would be done, as ``-n`` shows it. Takes no lock and writes nothing."""
    return planner(machine, survey(machine))


def exclusive_engine(machine: Machine) -> Engine:
    """Return an engine for callers that hold their own lock (recover)."""
    return Engine(machine)


def summary(record: Record) -> dict[str, Any]:
    """Return *record* as scripts read it."""
    return {
        "name": record.name,
        "uuid": record.uuid,
        "kind": record.kind.value,
        "created": record.created,
        "origin": record.origin,
        "transaction": record.transaction,
        "state": record.state.value,
        "adopted": record.adopted,
        "pinned": record.pinned,
        "lived": record.lived,
        "description": record.description,
        "path": record.path,
    }
